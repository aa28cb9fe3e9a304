"""Upstream's training layout, that of FaceCaptionMask-1M, as a source of records.

A JSON list with one object per picture, and five folders that its paths are relative to:

| field | relative to | what |
| --- | --- | --- |
| `image` | images, shading | the picture and its shading map, under one name: the record's key |
| `face` | faces | a list whose first is the aligned face |
| the same with `.pt` for `.jpg` | face IDs | its embedding, a torch tensor (1, 512) |
| `face_emotion_caption` | | text |
| `emotion_parsing_masks` | masks/Emotion | a list of `{"mask": path, "token_indices": [1, 2]}` |
| `face_attribute_caption` | | text |
| `atrribute_parsing_masks`, or in right spelling | masks/Attribute | the same |
| `landmarks`, ours, may be absent | | five [x, y] in the upright picture's pixels, ArcFace order |

Older files have `face_short_caption`, or `face_caption` (a list, whose first counts), with
`parsing_masks` relative to the masks' folder itself. Where there is but one caption, it stands for
both kinds, as upstream would draw it every time.
"""
