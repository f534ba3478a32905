"""The chat format of `render` as a template of transformers, for folders that hold none."""

from videorft_jax.models.geometry import WINDOWED_14, Geometry

FILE_NAME = "chat_template.jinja"
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
