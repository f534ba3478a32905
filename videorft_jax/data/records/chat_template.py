"""The chat format of `render` as a template of transformers, for folders that hold none."""

from videorft_jax.models.geometry import WINDOWED_14, Geometry

FILE_NAME = "chat_template.jinja"
EXACT_FILE = "exact_chat_template.jinja"  # Beside it, of families whose clips have times.
_PAD = "<|video_pad|>"
_CLIP = f"<|vision_start|>{_PAD}<|vision_end|>"
_TURNS = (
    "{%- for turn in messages -%}{{ '<|im_start|>' + turn.role + '\\n' }}"
    "{%- if turn.content is string -%}{{ turn.content }}{%- else -%}"
    "{%- for part in turn.content -%}"
    "{%- if part.type in ('image', 'video') -%}"
    "{{ '<|vision_start|><|' + part.type + '_pad|><|vision_end|>' }}"
    "{%- else -%}{{ part.text }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def chat_template(geometry: Geometry = WINDOWED_14) -> str:
    """The Jinja text, which opens a chat without a system turn as the family's models do."""
    if not geometry.default_system:
        return _TURNS
    turn = f"<|im_start|>system\\n{geometry.default_system}<|im_end|>\\n"
    opening = f"{{%- if messages[0].role != 'system' -%}}{{{{ '{turn}' }}}}{{%- endif -%}}"
    return opening + _TURNS


def exact_template(template: str | None, geometry: Geometry) -> str:
    """A template, or where it does not write clips in the family's way our own, with the pad of a
    clip alone in place of the pad between its markers.

    From 5.10 on the processor of Qwen3-VL in transformers puts the frames, each with its time and
    its own markers, in place of the pad and leaves the outer markers, with which no model was
    trained. Of the pad alone it makes the prompt that the weights know.
    """
    if template and _CLIP in template:
        return template.replace(_CLIP, _PAD)
    shown = "{{ '<|vision_start|><|' + part.type + '_pad|><|vision_end|>' }}"
    ours = "{%- if part.type == 'video' -%}" + _PAD + "{%- else -%}" + shown + "{%- endif -%}"
    return chat_template(geometry).replace(shown, ours)
