"""Words' regions in a label map."""

import numpy as np
import pytest

from fmv2.face.labels import LABELS, NUMBER, mirrored
from fmv2.face.regions import REGIONS, region_mask

EVERY = np.arange(len(LABELS), dtype=np.uint8)[None]


def found(name: str) -> set[str]:
    return {LABELS[number] for number in EVERY[region_mask(name, EVERY)]}


def test_regions_are_the_labels_of_the_reference():
    assert found("hair") == {"hair"}
    assert found("brows") == {"l_brow", "r_brow"}
    assert found("eyes") == {"l_eye", "r_eye", "eye_g"}
    assert found("glasses") == {"eye_g"}
    assert found("lips") == {"u_lip", "l_lip"}
    assert found("mouth") == {"u_lip", "l_lip", "mouth"}
    assert found("earrings") == {"ear_r"}
    assert found("necklace") == {"neck_l"}
    assert found("skin") == {"skin", "nose"}
    assert found("expression") == found("brows") | found("eyes") | found("mouth")
    assert found("hat") | found("clothes") | found("neck") == {"hat", "cloth", "neck"}


def test_a_mirrored_picture_has_the_other_side():
    labels = np.full((4, 6), NUMBER["skin"], np.uint8)
    labels[1, 1], labels[1, 4] = NUMBER["r_eye"], NUMBER["l_eye"]
    left = region_mask("left_eye", labels)
    assert np.argwhere(left).tolist() == [[1, 1]]  # on the picture's left
    flipped = np.array(mirrored(), np.uint8)[labels[:, ::-1]]
    np.testing.assert_array_equal(region_mask("right_eye", flipped), left[:, ::-1])


def test_what_no_label_tells_is_refused():
    assert [name for name, parts in REGIONS.items() if parts is None] == ["beard"]
    with pytest.raises(ValueError, match="no label tells the region 'beard'"):
        region_mask("beard", EVERY)
