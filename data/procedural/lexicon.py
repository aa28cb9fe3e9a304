"""The words that the procedural world has for what its pictures show.

Lines are rules of `data.procedural.grammar`. Every attribute's name is a rule itself, which stands
for the words of the picture's own class. Words of two classes of one attribute differ.
"""

from collections.abc import Mapping
from typing import NamedTuple

from data.procedural.factors import ATTRIBUTES, EYE_COLORS, PAINTS, SKIN_TONES
from data.procedural.grammar import Rules

_PAINTS = {paint: paint for paint in PAINTS} | {
    "red": "red | scarlet | crimson",
    "purple": "purple | violet",
}
_METALS = {"gold": "gold | golden", "silver": "silver"}

COLORS: Mapping[str, Rules] = {
    "skin_tone": {
        "pale": "pale | ivory",
        "fair": "fair | light",
        "tan": "tan | tanned | olive",
        "brown": "brown | caramel",
        "dark": "dark | ebony",
    },
    "eye_color": {color: color for color in EYE_COLORS} | {"grey": "grey | gray"},
    "hair_color": {
        "black": "black | raven",
        "brown": "brown | chestnut",
        "blond": "blond | blonde | golden",
        "red": "red | ginger | copper",
        "grey": "grey | gray",
        "white": "white",
        "blue": "blue",
        "pink": "pink",
        "green": "green",
    },
    "hat_color": _PAINTS,
    "cloth_color": _PAINTS,
    "glasses_color": {color: color for color in ATTRIBUTES["glasses_color"]} | _METALS,
    "lip_color": {
        "natural": "natural | bare",
        "red": "red | scarlet",
        "pink": "pink | rosy",
        "purple": "purple | violet",
        "brown": "brown",
    },
    "earring_color": {color: color for color in ATTRIBUTES["earring_color"]} | _METALS,
    "necklace": _METALS,
    "background": {color: color for color in ATTRIBUTES["background"]} | {"grey": "grey | gray"},
}
"""Adjectives of one word, by attribute and class."""

HAS: Mapping[str, Rules] = {
    "hair_style": {
        "short": "[short {hair_color} hair@hair] | [{hair_color} hair@hair] | [short hair@hair] | "
        "[cropped {hair_color} hair@hair] | [{hair_color} hair@hair] that is cut short",
        "bob": "a [{hair_color} bob@hair] | a [{hair_color} bob haircut@hair] | "
        "[{hair_color} hair@hair] in a bob | [chin length hair@hair] | [{hair_color} hair@hair]",
        "long": "[long {hair_color} hair@hair] | [{hair_color} hair@hair] | [long hair@hair] | "
        "[long flowing hair@hair] | [flowing {hair_color} hair@hair]",
        "curly": "[curly {hair_color} hair@hair] | [{hair_color} curls@hair] | [curly hair@hair] | "
        "[{hair_color} hair@hair] in curls | [curly {hair_color} locks@hair]",
        "bun": "a [{hair_color} bun@hair] | a [{hair_color} hair bun@hair] | "
        "[{hair_color} hair@hair] in a bun | [tied back {hair_color} hair@hair]",
    },
    "bangs": {
        "bangs": "[bangs@hair] | [{hair_color} bangs@hair] | a [fringe@hair] | "
        "a [{hair_color} fringe@hair]",
    },
    "eye_color": dict.fromkeys(EYE_COLORS, "[{eye_color} eyes@eyes]"),
    "skin_tone": dict.fromkeys(
        SKIN_TONES, "[{skin_tone} skin@skin] | a [{skin_tone} complexion@skin]"
    ),
    "lip_color": {
        "natural": "[{lip_color} lips@lips]",
        **dict.fromkeys(
            ATTRIBUTES["lip_color"][1:],
            "[{lip_color} lips@lips] | [{lip_color} lipstick@lips] | "
            "[lips@lips] painted {lip_color}",
        ),
    },
    "beard": {
        "stubble": "[stubble@beard] | [short stubble@beard] | a [stubble beard@beard]",
        "moustache": "a [moustache@beard] | a [mustache@beard]",
        "goatee": "a [goatee@beard] | a [goatee beard@beard] | a [chin beard@beard]",
        "full": "a [full beard@beard] | a [beard@beard] | a [thick beard@beard] | "
        "a [bushy beard@beard]",
    },
}
"""What a head has of its own, by attribute and class."""

WEARS: Mapping[str, Rules] = {
    "hat": {
        "cap": "a [{hat_color} cap@hat] | a [{hat_color} baseball cap@hat] | a [cap@hat] | "
        "a [{hat_color} hat@hat]",
        "beanie": "a [{hat_color} beanie@hat] | a [beanie@hat] | a [{hat_color} woolly hat@hat] | "
        "a [{hat_color} knit hat@hat] | a [{hat_color} hat@hat]",
        "brimmed": "a [{hat_color} brimmed hat@hat] | a [wide brimmed hat@hat] | "
        "a [{hat_color} sun hat@hat] | a [{hat_color} hat@hat] with a brim",
    },
    "glasses": {
        "round": "[round {glasses_color} glasses@glasses] | [round glasses@glasses] | "
        "[{glasses_color} glasses@glasses] | [glasses@glasses] with {glasses_color} frames | "
        "[round {glasses_color} spectacles@glasses] | [round eyeglasses@glasses]",
        "square": "[square {glasses_color} glasses@glasses] | [square glasses@glasses] | "
        "[{glasses_color} glasses@glasses] | [square spectacles@glasses] with "
        "{glasses_color} frames | [rectangular {glasses_color} eyeglasses@glasses]",
        "sunglasses": "[sunglasses@glasses] | [dark sunglasses@glasses] | [shades@glasses]",
    },
    "earrings": {
        "both": "[{earring_color} earrings@earrings] | [earrings@earrings] | "
        "two [{earring_color} earrings@earrings] | a pair of [{earring_color} earrings@earrings]",
        **{
            side: f"a [{{earring_color}} earring@earrings] on the {side} | "
            f"an [earring@earrings] on the {side} side | "
            f"one [{{earring_color}} earring@earrings] on the {side} | "
            f"a [{side} {{earring_color}} earring@earrings]"
            for side in ("left", "right")
        },
    },
    "necklace": dict.fromkeys(
        ("gold", "silver"),
        "a [{necklace} necklace@necklace] | a [necklace@necklace] | a [{necklace} chain@necklace]",
    ),
    "cloth_color": dict.fromkeys(
        PAINTS,
        "a [{cloth_color} shirt@clothes] | a [{cloth_color} top@clothes] | "
        "[{cloth_color} clothes@clothes] | [{cloth_color} clothing@clothes] | "
        "a [{cloth_color} sweater@clothes] | a [{cloth_color} outfit@clothes]",
    ),
}

LACKS: Mapping[str, Rules] = {
    "hair_style": {"bald": "hair"},
    "bangs": {"none": "bangs | fringe"},
    "hat": {"none": "hat | headwear"},
    "glasses": {"none": "glasses | spectacles | eyewear"},
    "beard": {"none": "beard | facial hair"},
    "earrings": {"none": "earrings"},
    "necklace": {"none": "necklace"},
}
"""What is said to be absent; it has no region, so it is no phrase."""

IS: Mapping[str, Rules] = {
    "hair_style": {
        "bald": "bald",
        **dict.fromkeys(ATTRIBUTES["hair_style"][1:], "[{hair_color} haired@hair]"),
    },
    "eye_color": dict.fromkeys(EYE_COLORS, "[{eye_color} eyed@eyes]"),
    "skin_tone": dict.fromkeys(SKIN_TONES, "[{skin_tone} skinned@skin]"),
    "beard": {"none": "clean shaven | beardless", "full": "[bearded@beard]"},
}
"""Adjectives of the person."""


class Mood(NamedTuple):
    """Words for an emotion; each speaks of the whole expression."""

    adjectives: str
    nouns: str


MOODS: Mapping[str, Mood] = {
    "neutral": Mood(
        "neutral | calm | expressionless | relaxed | composed | serene", "calm | indifference"
    ),
    "happy": Mood(
        "happy | cheerful | joyful | pleased | delighted | glad", "joy | happiness | delight"
    ),
    "laughing": Mood("laughing | amused | giggling", "laughter | amusement | mirth"),
    "sad": Mood(
        "sad | unhappy | sorrowful | gloomy | downcast | melancholy", "sadness | sorrow | grief"
    ),
    "angry": Mood("angry | furious | mad | annoyed | enraged", "anger | rage | fury"),
    "surprised": Mood(
        "surprised | astonished | amazed | startled | shocked",
        "surprise | astonishment | amazement | shock",
    ),
    "disgusted": Mood("disgusted | repulsed | revolted", "disgust | revulsion | distaste"),
    "sleepy": Mood(
        "sleepy | tired | drowsy | weary | exhausted", "sleepiness | tiredness | fatigue"
    ),
    "winking": Mood("winking | playful | cheeky | mischievous", "mischief | playfulness"),
    "pouting": Mood("pouting | sulky | sulking | petulant", "petulance | defiance"),
}


class Action(NamedTuple):
    """What a face does when a measure lies from `low` to below `high`."""

    measure: str
    """One of EXPRESSION, or of those that `data.procedural.words.measures` adds."""
    low: float
    high: float
    nouns: str
    verbs: str = ""


_MORE = 1.01

ACTIONS = (
    Action(
        *("smile", 0.2, 0.4),
        "a [slight smile@mouth] | a [faint smile@mouth] | a [gentle smile@mouth]",
        "[smiling slightly@mouth] | [smiling gently@mouth] | [smiling@mouth] a little",
    ),
    Action(
        *("smile", 0.4, 0.75),
        "a [smile@mouth] | a [warm smile@mouth] | a [smiling mouth@mouth]",
        "[smiling@mouth] | [smiling warmly@mouth]",
    ),
    Action(
        *("smile", 0.75, _MORE),
        "a [broad smile@mouth] | a [wide smile@mouth] | a [big grin@mouth] | a [wide grin@mouth]",
        "[smiling broadly@mouth] | [grinning@mouth] | [smiling widely@mouth] | [grinning@mouth]",
    ),
    Action("mouth_open", 0.15, 0.4, "[parted lips@mouth] | a [slightly open mouth@mouth]"),
    Action(
        *("mouth_open", 0.4, 0.75),
        "an [open mouth@mouth] | an [opened mouth@mouth] | the [mouth@mouth] open",
    ),
    Action(
        *("mouth_open", 0.75, _MORE),
        "a [wide open mouth@mouth] | a [gaping mouth@mouth] | the [mouth@mouth] wide open",
        "[gaping@mouth]",
    ),
    Action(
        *("mouth_frown", 0.35, _MORE),
        "a [downturned mouth@mouth] | a [frown@mouth] | [drooping mouth corners@mouth]",
        "[frowning@mouth]",
    ),
    Action(
        *("pout", 0.35, _MORE),
        "[pouting lips@mouth] | [pursed lips@mouth] | a [pout@mouth] | [puckered lips@mouth]",
        "[pouting@mouth] | [puckering@mouth]",
    ),
    Action(
        *("lip_press", 0.4, _MORE),
        "[pressed lips@lips] | [tight lips@lips] | the [lips@lips] pressed together",
    ),
    Action("brow_raise", 0.2, 0.4, "[slightly raised eyebrows@brows]"),
    Action(
        *("brow_raise", 0.4, _MORE),
        "[raised eyebrows@brows] | [raised brows@brows] | [lifted eyebrows@brows] | "
        "the [eyebrows@brows] raised",
    ),
    Action(
        *("inner_brow_raise", 0.35, _MORE),
        "[slanted eyebrows@brows] | [slanting brows@brows] | [worried eyebrows@brows]",
    ),
    Action(
        *("brow_furrow", 0.35, _MORE),
        "[furrowed brows@brows] | [knitted eyebrows@brows] | [lowered eyebrows@brows]",
        "[scowling@brows]",
    ),
    Action(
        *("both_shut", 0.75, _MORE),
        "[closed eyes@eyes] | [shut eyes@eyes] | the [eyes@eyes] closed | both [eyes@eyes] shut",
    ),
    Action(
        *("both_shut", 0.35, 0.7),
        "[half closed eyes@eyes] | [drooping eyelids@eyes] | [heavy eyelids@eyes]",
    ),
    *(
        Action(
            *(f"{side}_shut", 0.75, _MORE),
            f"a [closed {side} eye@{side}_eye] | the [{side} eye@{side}_eye] closed | "
            f"the [{side} eye@{side}_eye] shut",
            f"[winking@{side}_eye] with the {side} eye | [winking@{side}_eye] on the {side}",
        )
        for side in ("left", "right")
    ),
    Action(
        *("eyes_wide", 0.4, _MORE),
        "[wide eyes@eyes] | [wide open eyes@eyes] | [widened eyes@eyes] | the [eyes@eyes] wide",
        "[staring@eyes]",
    ),
    Action(
        *("squint", 0.35, _MORE), "[narrowed eyes@eyes] | [squinting eyes@eyes]", "[squinting@eyes]"
    ),
    Action(
        *("nose_wrinkle", 0.35, _MORE),
        "a [wrinkled nose@nose] | a [scrunched nose@nose] | a [crinkled nose@nose]",
    ),
)

REST = (
    Action("mouth_open", 0.0, 0.05, "a [closed mouth@mouth] | the [mouth@mouth] closed"),
    Action("any_shut", 0.0, 0.1, "[open eyes@eyes] | the [eyes@eyes] open"),
)
"""What a face does when it does nothing: seldom worth a word."""
