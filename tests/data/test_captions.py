from dataclasses import replace

from promptprism.data.miniworld import scenes
from promptprism.data.miniworld.captions import caption_parts


def test_a_scene_is_described_in_full_and_in_parts():
    scene = next(scene for scene, _ in scenes("mini/food", "test") if scene.second is not None)
    scene = replace(scene, artist="emojione", colour="red", pattern="striped")
    name, second = scene.concept.name, scene.second.name
    assert caption_parts(scene) == {
        "full": f"a sticker of a {name} on a red striped background with a small {second}.",
        "object": f"a photo of a {name}.",
        "background": "a red striped background.",
        "style": "a sticker.",
        "second object": f"a small {second}.",
    }
