"""S2 as the vision tower of a Hugging Face Llava: `s2_llava` for the model, `s2_processor` for its pictures.

`register` makes saved models known to transformers again. See docs/s2-in-a-vlm.md.
"""

from s2robot.vlm.llava import register, s2_llava, s2_processor

__all__ = ["register", "s2_llava", "s2_processor"]
