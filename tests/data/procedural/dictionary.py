"""Reads captions of the procedural world with a dictionary that does not know their grammar.

Every word must be in it, and everything that the words claim must be so.
"""

import re

from data.procedural.factors import CLASSES
from tests.data.procedural.pictures import Told

GREY = {"grey": "grey", "gray": "grey"}
METALS = {"gold": "gold", "golden": "gold", "silver": "silver"}
PAINTS = {name: name for name in CLASSES["hat_color"]}
PAINTS |= {"scarlet": "red", "crimson": "red", "violet": "purple"}
COLORS: dict[str, tuple[str, dict[str, str]]] = {
    "hair": (
        "hair_color",
        {name: name for name in CLASSES["hair_color"]}
        | {"raven": "black", "chestnut": "brown", "blonde": "blond", "golden": "blond"}
        | {"ginger": "red", "copper": "red"}
        | GREY,
    ),
    "eyes": ("eye_color", {name: name for name in CLASSES["eye_color"]} | GREY),
    "skin": (
        "skin_tone",
        {name: name for name in CLASSES["skin_tone"]}
        | {"ivory": "pale", "light": "fair", "tanned": "tan", "olive": "tan"}
        | {"caramel": "brown", "ebony": "dark"},
    ),
    "lips": (
        "lip_color",
        {name: name for name in CLASSES["lip_color"]}
        | {"bare": "natural", "scarlet": "red", "rosy": "pink", "violet": "purple"},
    ),
    "hat": ("hat_color", PAINTS),
    "clothes": ("cloth_color", PAINTS),
    "glasses": (
        "glasses_color",
        {name: name for name in CLASSES["glasses_color"]} | {"golden": "gold"},
    ),
    "earrings": ("earring_color", METALS | {"red": "red", "blue": "blue"}),
    "necklace": ("necklace", METALS),
    "beard": ("beard", {}),
}
# Per region: what its other words claim, as an attribute and the classes it may have then, if
# anything but that the region is there.
KINDS: dict[str, dict[str, tuple[str, set[str]] | None]] = {
    "hair": {
        **dict.fromkeys(("short", "cropped"), ("hair_style", {"short"})),
        **dict.fromkeys(("bob", "haircut", "chin", "length"), ("hair_style", {"bob"})),
        **dict.fromkeys(("long", "flowing"), ("hair_style", {"long"})),
        **dict.fromkeys(("curly", "curls", "locks"), ("hair_style", {"curly"})),
        **dict.fromkeys(("bun", "tied", "back"), ("hair_style", {"bun"})),
        **dict.fromkeys(("bangs", "fringe"), ("bangs", {"bangs"})),
        **dict.fromkeys(("hair", "haired"), ("hair_style", {*CLASSES["hair_style"]} - {"bald"})),
    },
    "eyes": dict.fromkeys(("eyes", "eyed"), ("glasses", {*CLASSES["glasses"]} - {"sunglasses"})),
    "skin": dict.fromkeys(("skin", "skinned", "complexion")),
    "lips": {
        "lips": None,
        "lipstick": ("lip_color", {*CLASSES["lip_color"]} - {"natural"}),
    },
    "hat": {
        **dict.fromkeys(("cap", "baseball"), ("hat", {"cap"})),
        **dict.fromkeys(("beanie", "woolly", "knit"), ("hat", {"beanie"})),
        **dict.fromkeys(("brimmed", "wide", "sun"), ("hat", {"brimmed"})),
        "hat": ("hat", {*CLASSES["hat"]} - {"none"}),
    },
    "clothes": dict.fromkeys(("shirt", "top", "clothes", "clothing", "sweater", "outfit")),
    "glasses": {
        "round": ("glasses", {"round"}),
        **dict.fromkeys(("square", "rectangular"), ("glasses", {"square"})),
        **dict.fromkeys(("sunglasses", "dark", "shades"), ("glasses", {"sunglasses"})),
        **dict.fromkeys(("glasses", "spectacles", "eyeglasses"), ("glasses", {"round", "square"})),
    },
    "earrings": {
        "earrings": ("earrings", {"both"}),
        "earring": ("earrings", {"left", "right"}),
        **{side: ("earrings", {side}) for side in ("left", "right")},
    },
    "necklace": dict.fromkeys(("necklace", "chain"), ("necklace", {"gold", "silver"})),
    "beard": {
        **dict.fromkeys(("stubble", "short"), ("beard", {"stubble"})),
        **dict.fromkeys(("moustache", "mustache"), ("beard", {"moustache"})),
        **dict.fromkeys(("goatee", "chin"), ("beard", {"goatee"})),
        **dict.fromkeys(("full", "thick", "bushy", "bearded"), ("beard", {"full"})),
        "beard": ("beard", {"stubble", "goatee", "full"}),
    },
}
# What may stand beside phrases: a word for an attribute's class, or many words for one class.
AROUND = {
    "background": (PAINTS | GREY, r"\b(\w+) (?:background|backdrop|wall)\b"),
    "lip_color": (COLORS["lips"][1], r"(?<=lips )painted (\w+)\b"),
    "glasses_color": (COLORS["glasses"][1], r"(?<=es )with (\w+) frames\b"),
}
STYLES = {
    r"(?<=hair )in a bob\b": ("hair_style", {"bob"}),
    r"(?<=hair )in curls\b": ("hair_style", {"curly"}),
    r"(?<=hair )in a bun\b": ("hair_style", {"bun"}),
    r"(?<=hair )that is cut short\b": ("hair_style", {"short"}),
    r"(?<=hat )with a brim\b": ("hat", {"brimmed"}),
    r"\bbald\b": ("hair_style", {"bald"}),
    r"\b(?:clean shaven|beardless)\b": ("beard", {"none"}),
    r"\b(?:two|a pair of|pair of)(?= (?:\w+ )?earrings)": ("earrings", {"both"}),
    r"\bone(?= (?:\w+ )?earring\b)": ("earrings", {"left", "right"}),
    r"(?<=earring )on the left(?: side)?\b": ("earrings", {"left"}),
    r"(?<=earring )on the right(?: side)?\b": ("earrings", {"right"}),
}
ABSENT = {
    "hair": ("hair_style", {"bald"}),
    **dict.fromkeys(("bangs", "fringe"), ("bangs", {"none"})),
    **dict.fromkeys(("hat", "headwear"), ("hat", {"none"})),
    **dict.fromkeys(("glasses", "spectacles", "eyewear"), ("glasses", {"none"})),
    **dict.fromkeys(("beard", "facial hair"), ("beard", {"none"})),
    "earrings": ("earrings", {"none"}),
    "necklace": ("necklace", {"none"}),
}
THING = f"(?:{'|'.join(ABSENT)})"
LACKS = re.compile(rf"\b(?:no|without any) ({THING}(?:(?:, or|,| or) {THING})*)\b")
GLUE = re.compile(
    "a|an|the|and|of|in|is|person|face|head|figure|human|model|character|portrait|picture|photo|"
    "image|close|up|view|with|having|has|wearing|wears|before|against|front|full|showing|shows|"
    "look|expression|looking|looks|appears|seems|both"
)
MOODS = {
    "neutral": "neutral calm expressionless relaxed composed serene indifference",
    "happy": "happy cheerful joyful pleased delighted glad joy happiness delight",
    "laughing": "laughing amused giggling laughter amusement mirth",
    "sad": "sad unhappy sorrowful gloomy downcast melancholy sadness sorrow grief",
    "angry": "angry furious mad annoyed enraged anger rage fury",
    "surprised": "surprised astonished amazed startled shocked surprise astonishment amazement "
    "shock",
    "disgusted": "disgusted repulsed revolted disgust revulsion distaste",
    "sleepy": "sleepy tired drowsy weary exhausted sleepiness tiredness fatigue",
    "winking": "winking playful cheeky mischievous mischief playfulness",
    "pouting": "pouting sulky sulking petulant petulance defiance",
}
# What a face is said to do: region, words, and the measure's bounds that bear them out.
DEEDS = (
    ("mouth", r"(slight|faint|gentle) smile|smiling (slightly|gently|a little)", "smile", 0.2, 0.4),
    ("mouth", r"(warm )?smile|smiling( warmly| mouth)?", "smile", 0.4, 0.75),
    ("mouth", r"(broad|wide) smile|smiling (broad|wide)ly", "smile", 0.75, 2),
    ("mouth", r"((big|wide) )?grin(ning)?", "smile", 0.75, 2),
    ("mouth", r"parted lips|slightly open mouth", "mouth_open", 0.15, 0.4),
    ("mouth", r"open(ed)? mouth|mouth open", "mouth_open", 0.4, 0.75),
    ("mouth", r"(wide open|gaping) mouth|mouth wide open|gaping", "mouth_open", 0.75, 2),
    ("mouth", r"closed mouth|mouth closed", "mouth_open", 0, 0.05),
    ("mouth", r"downturned mouth|frown(ing)?|drooping mouth corners", "mouth_frown", 0.35, 2),
    ("mouth", r"(pouting|pursed|puckered) lips|pout|pouting|puckering", "pout", 0.35, 2),
    ("lips", r"(pressed|tight) lips|lips pressed together", "lip_press", 0.4, 2),
    ("brows", r"slightly raised eyebrows", "brow_raise", 0.2, 0.4),
    ("brows", r"raised (eye)?brows|lifted eyebrows|eyebrows raised", "brow_raise", 0.4, 2),
    ("brows", r"slanted eyebrows|slanting brows|worried eyebrows", "inner_brow_raise", 0.35, 2),
    ("brows", r"furrowed brows|(knitted|lowered) eyebrows|scowling", "brow_furrow", 0.35, 2),
    ("eyes", r"(closed|shut) eyes|eyes (closed|shut)", "both", 0.75, 2),
    ("eyes", r"half closed eyes|(drooping|heavy) eyelids", "both", 0.35, 0.7),
    ("eyes", r"open eyes|eyes open", "any", 0, 0.1),
    ("eyes", r"wide( open)? eyes|widened eyes|eyes wide|staring", "eyes_wide", 0.4, 2),
    ("eyes", r"narrowed eyes|squinting( eyes)?", "squint", 0.35, 2),
    # The head's own left eye is on the picture's right.
    ("left_eye", r"closed left eye|left eye (closed|shut)", "right alone", 0.75, 2),
    ("right_eye", r"closed right eye|right eye (closed|shut)", "left alone", 0.75, 2),
    ("left_eye", r"winking (on the left|with the left eye)", "right alone", 0.75, 2),
    ("right_eye", r"winking (on the right|with the right eye)", "left alone", 0.75, 2),
    ("nose", r"(wrinkled|scrunched|crinkled) nose", "nose_wrinkle", 0.35, 2),
)
TAIL = re.compile(
    r" (?:(?:wide )?open|wide|closed|shut|raised|pressed together|a little|"
    r"(?:on|with) the (?:left|right)(?: eye)?)\b"
)


class Reader:
    """Reads one caption of a picture, and holds every word of it against the picture."""

    def __init__(self, kind: str, picture: Told):
        self.picture = picture
        self.worded = picture.attribute_caption if kind == "attribute" else picture.emotion_caption
        self.text = self.worded.text.lower()
        self.rest = self.text
        self.said: set[tuple[str, str]] = set()

    def read(self) -> set[tuple[str, str]]:
        """What it says beyond doubt, as (attribute, class), (emotion, …) and (deed, pattern)."""
        for start, end, region in self.worded.phrases:
            if region == "expression":
                assert self.text[start:end] in MOODS[self.picture.emotion].split()
                self.said.add(("emotion", self.picture.emotion))
            elif (tail := TAIL.match(self.text, end)) and self.deed(
                region, self.text[start : tail.end()]
            ):
                end = tail.end()
            elif not self.deed(region, self.text[start:end]):
                self.attribute(region, self.text[start:end].split())
            self.blank(start, end)
        for name, (words, pattern) in AROUND.items():
            for found in re.finditer(pattern, self.text):
                if self.free(*found.span(1)):
                    self.claim(name, {words[found[1]]})
                    self.blank(*found.span())
        for pattern, claim in STYLES.items():
            for found in re.finditer(pattern, self.text):
                if self.free(*found.span()):
                    self.claim(*claim)
                    self.blank(*found.span())
        for found in LACKS.finditer(self.rest):
            for thing in re.split(r",? or |, ", found[1]):
                self.claim(*ABSENT[thing])
            self.blank(*found.span())
        assert all(GLUE.fullmatch(word) for word in re.findall(r"[^ ,.#]+", self.rest)), self.rest
        return self.said

    def free(self, start: int, end: int) -> bool:
        return "#" not in self.rest[start:end]

    def blank(self, start: int, end: int) -> None:
        self.rest = self.rest[:start] + "#" * (end - start) + self.rest[end:]

    def claim(self, name: str, classes: set[str]) -> None:
        assert self.picture.classes[name] in classes
        if len(classes) == 1:
            self.said |= {(name, one) for one in classes}
        if name == "bangs":
            assert self.picture.classes.get("hair_style") != "bald"
        if name in ("bangs", "hair_style") and classes & {"none", "bald"}:
            assert self.picture.classes.get("hat", "none") == "none"  # it hides that

    def attribute(self, region: str, words: list[str]) -> None:
        name, colors = COLORS[region]
        for word in words:
            claim = KINDS[region].get(word, (name, {colors.get(word, f"not {word}")}))
            if claim is not None:
                self.claim(*claim)

    def deed(self, region: str, words: str) -> bool:
        """Whether these are words for what a face does; it must do so."""
        expression = self.picture.expression
        left, right = expression["blink_left"], expression["blink_right"]
        measures = {
            **expression,
            "both": min(left, right),
            "any": max(left, right),
            "left alone": left - (right >= 0.3),
            "right alone": right - (left >= 0.3),
        }
        for place, pattern, name, low, high in DEEDS:
            if place == region and re.fullmatch(pattern, words):
                assert low <= measures[name] < high
                assert name not in ("eyes_wide", "squint") or measures["any"] < 0.3
                assert "eye" not in region or self.picture.classes.get("glasses") != "sunglasses"
                self.said.add(("deed", pattern))
                return True
        return False
