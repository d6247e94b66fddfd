"""S2 in the vision tower of a Hugging Face Llava: `s2_llava`, `s2_processor`, and `register` for saved models."""

from s2robot.vlm.llava import register, s2_llava, s2_processor

__all__ = ["register", "s2_llava", "s2_processor"]
