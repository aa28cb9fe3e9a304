"""A picture shows what its factors say, where its labels and landmarks say."""

import jax
import numpy as np
import pytest

from data.procedural import chance, painter
from data.procedural.factors import CLASSES, EXPRESSION, IDENTITY, Factors
from data.procedural.picture import draw
from fmv2.face.labels import NUMBER
from fmv2.face.shading import BASIS_SCALES

SIZE = 64


def causes(*, brows=0.0, light_from=0.0, rotation=(0.0, 0.0, 0.0), expression=(), **classes):
    numbers = {name: CLASSES[name].index(label) for name, label in classes.items()}
    light = np.zeros((9, 3))
    light[0], light[1], light[3] = 0.75, 0.5 * light_from, 0.25
    fields = dict(expression)
    return Factors(
        identity=np.float32(np.array(IDENTITY) == "brow_thickness") * np.float32(brows),
        expression=np.array([fields.get(name, 0.0) for name in EXPRESSION], np.float32),
        classes=np.array([numbers.get(name, 0) for name in CLASSES], np.int32),
        emotion=np.int32(0),
        rotation=np.array(rotation, np.float32),
        camera=np.array([5.8, 0.0, 0.01], np.float32),
        light=(light / np.array(BASIS_SCALES)[:, None]).astype(np.float32),
        texture_seed=np.uint32(7),
    )


PLAIN = causes(hair_style="short")
CASES = {
    "plain": PLAIN,
    "bald": causes(),
    "red cap": causes(hair_style="short", hat="cap", hat_color="red"),
    "everything": causes(
        hair_style="long",
        hair_color="blue",
        glasses="square",
        glasses_color="gold",
        beard="full",
        lip_color="purple",
        earrings="both",
        necklace="gold",
        cloth_color="green",
    ),
    "earring on the left": causes(earrings="left", earring_color="red"),
    "open": causes(expression={"mouth_open": 1.0}.items(), hair_style="short"),
    "asleep": causes(expression={"blink_left": 1.0, "blink_right": 1.0}.items()),
    "lit from the picture's left": causes(light_from=-1.0),
    "lit from the picture's right": causes(light_from=1.0),
    "thick brows": causes(brows=2.0),
    "turned": causes(rotation=(0.0, 0.5, 0.0)),
}


@pytest.fixture(scope="module")
def pictures():
    drawn = jax.device_get(draw(chance.stack(list(CASES.values())), size=SIZE, face_size=56))
    return {name: jax.tree.map(lambda x, i=i: x[i], drawn) for i, name in enumerate(CASES)}


def share(picture, *labels):
    return np.isin(picture.labels, [NUMBER[label] for label in labels]).mean()


def test_what_is_worn_is_labelled_and_nothing_else(pictures):
    worn = {"hat": "red cap", "eye_g": "everything", "neck_l": "everything", "hair": "plain"}
    for label, name in worn.items():
        assert share(pictures[name], label) > 0.002, label
        assert share(pictures["bald"], label) == 0, label
    everything = ("skin", "l_brow", "r_brow", "l_eye", "r_eye", "nose", "u_lip", "l_lip", "neck")
    for label in (*everything, "cloth", "l_ear", "r_ear"):
        assert share(pictures["bald"], label) > 0, label
    assert pictures["everything"].beard.mean() > 0.01
    assert not pictures["plain"].beard.any()
    assert (pictures["everything"].labels[pictures["everything"].beard] == NUMBER["skin"]).all()


def test_thick_brows_are_thick(pictures):
    thick, plain = (share(pictures[name], "l_brow", "r_brow") for name in ("thick brows", "bald"))
    assert thick > 1.2 * plain


def test_sides_are_where_they_should_be(pictures):
    bald = pictures["bald"].labels
    columns = np.arange(SIZE)[None].repeat(SIZE, 0)

    def middle(label, labels=bald):
        return columns[labels == NUMBER[label]].mean()

    # The head's own left is on the picture's right.
    for part in ("brow", "eye", "ear"):
        assert middle(f"r_{part}") < SIZE / 2 < middle(f"l_{part}"), part
    assert middle("ear_r", pictures["earring on the left"].labels) < SIZE / 2


def test_landmarks_lie_on_what_they_name(pictures):
    picture = pictures["bald"]
    for point, label in zip(picture.landmarks, ("r_eye", "l_eye", "nose"), strict=False):
        x, y = np.round(point).astype(int)
        assert picture.labels[y, x] == NUMBER[label]
    rows, columns = np.nonzero(np.isin(picture.labels, [NUMBER["u_lip"], NUMBER["l_lip"]]))
    assert abs(picture.landmarks[3, 0] - columns.min()) < 2.5
    assert abs(picture.landmarks[4, 0] - columns.max()) < 2.5
    assert rows.min() - 1 < picture.landmarks[3:, 1].mean() < rows.max() + 1


def test_turning_moves_the_nose_and_hides_an_ear(pictures):
    # Towards its own left, which is the picture's right.
    assert pictures["turned"].landmarks[2, 0] > pictures["bald"].landmarks[2, 0] + 3
    assert share(pictures["turned"], "r_ear") > share(pictures["turned"], "l_ear")


def test_an_open_mouth_shows_its_inside_and_shut_eyes_no_iris(pictures):
    assert share(pictures["open"], "mouth") > 0.002
    assert share(pictures["plain"], "mouth") < 0.0005
    awake, asleep = pictures["bald"], pictures["asleep"]
    assert share(asleep, "l_eye", "r_eye") > 0.001  # lids count where they hide the eye
    assert picture_contrast(awake) > 1.5 * picture_contrast(asleep)


def picture_contrast(picture):
    eyes = np.isin(picture.labels, [NUMBER["l_eye"], NUMBER["r_eye"]])
    return picture.image[eyes].astype(float).std()


@pytest.mark.parametrize(
    ("name", "label", "attribute"),
    [
        ("red cap", "hat", "hat_color"),
        ("everything", "hair", "hair_color"),
        ("everything", "cloth", "cloth_color"),
        ("everything", "l_lip", "lip_color"),
    ],
)
def test_colours_are_nearest_to_their_own_name(pictures, name, label, attribute):
    picture = pictures[name]
    seen = np.median(picture.image[picture.labels == NUMBER[label]], axis=0) / 255
    table = np.asarray(painter.table(attribute))
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    chosen = CASES[name].classes[list(CLASSES).index(attribute)]
    assert np.argmax(unit @ (seen / np.linalg.norm(seen))) == chosen


def test_light_comes_from_its_side(pictures):
    for side, half in (("left", slice(0, SIZE // 2)), ("right", slice(SIZE // 2, SIZE))):
        picture = pictures[f"lit from the picture's {side}"]
        for pixels in (picture.shading, picture.image):
            lit = picture.shading.any(-1)
            there, all_of_it = pixels[:, half][lit[:, half]].mean(), pixels[lit].mean()
            assert there > 1.1 * all_of_it


def test_the_shading_map_shows_the_face_alone(pictures):
    lit = pictures["everything"].shading.any(-1)
    assert 0.05 < lit.mean() < 0.35
    np.testing.assert_array_equal(
        pictures["plain"].shading, pictures["bald"].shading, "hair and clothes leave no trace"
    )


def test_what_is_drawn_together_has_no_influence(pictures):
    mixed = [CASES["red cap"], *list(CASES.values())[1:]]
    drawn = jax.device_get(draw(chance.stack(mixed), size=SIZE, face_size=56))
    for alone, together in zip(
        pictures["red cap"], jax.tree.map(lambda x: x[0], drawn), strict=True
    ):
        np.testing.assert_array_equal(alone, together)


def test_the_aligned_face_has_its_landmarks_on_the_template(pictures):
    face = pictures["bald"].face.astype(float)
    eye, cheek = face[24:28, 17:21], face[32:36, 8:48]
    assert eye.std() > cheek.std()
