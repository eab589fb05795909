"""Captions of scenes: what the mini CLIP was pre-trained with, in full and in parts."""

from promptprism.data.miniworld.scenes import Scene

#: What captions call each artist's drawings.
STYLES = {
    "noto": "cartoon",
    "noto-v1": "soft drawing",
    "twemoji": "flat drawing",
    "fluent-emoji-flat": "bold drawing",
    "fxemoji": "simple drawing",
    "fluent-emoji": "glossy drawing",
    "emojione": "sticker",
    "emojione-monotone": "line drawing",
}


def caption_parts(scene: Scene) -> dict[str, str]:
    """The full description of a scene with a second object, and a description of each part of it alone.

    The parts are the task-relevant ``object``, and the task-irrelevant ``background`` (colour and pattern),
    ``style`` and ``second object``.
    """
    assert scene.second is not None
    style, name, second = STYLES[scene.artist], scene.concept.name, scene.second.name
    background = f"a {scene.colour} {scene.pattern} background"
    return {
        "full": f"a {style} of a {name} on {background} with a small {second}.",
        "object": f"a photo of a {name}.",
        "background": f"{background}.",
        "style": f"a {style}.",
        "second object": f"a small {second}.",
    }
