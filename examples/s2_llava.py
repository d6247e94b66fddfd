"""S² in the vision tower of a Llava: larger images, the same number of image tokens.

python examples/s2_llava.py --model llava-hf/llava-1.5-7b-hf --image photo.jpg --prompt "USER: <image>\\nWhat is this? ASSISTANT:"
python examples/s2_llava.py                                       # a small random model, without a download
"""

import argparse

import torch
import transformers as hf
from PIL import Image

from s2robot.vlm import s2_llava, s2_processor


def small() -> tuple[hf.LlavaForConditionalGeneration, hf.LlavaProcessor]:
    """Return a Llava with random weights and few channels, for images of 336 px, and a processor with few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**size, image_size=336, patch_size=14),
        text_config=hf.LlamaConfig(**size, vocab_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        image_token_index=4,
    )
    words = {
        word: i for i, word in enumerate(("<pad>", "<s>", "</s>", "<unk>", "<image>", "what", "is", "this"))
    }
    split = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    split.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {f"{name}_token": f"<{text}>" for name, text in (("pad", "pad"), ("unk", "unk"), ("eos", "/s"))}
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=split, additional_special_tokens=["<image>"], **marks
    )
    images = hf.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    count = dict(patch_size=14, num_additional_image_tokens=1, vision_feature_select_strategy="default")
    processor = hf.LlavaProcessor(image_processor=images, tokenizer=tokenizer, **count)
    return hf.LlavaForConditionalGeneration(config), processor


def main(argv: list[str] | None = None) -> dict[str, tuple[int, ...]]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a Llava on the hub, or a folder; default: a small random one")
    parser.add_argument("--image", help="an image file; default: a grey image of 800 x 1600 px")
    parser.add_argument("--prompt", default="<image> what is this")
    args = parser.parse_args(argv)
    if args.model:
        model = hf.LlavaForConditionalGeneration.from_pretrained(args.model, dtype="auto")
        processor = hf.AutoProcessor.from_pretrained(args.model)
    else:
        model, processor = small()
    image = Image.open(args.image) if args.image else Image.new("RGB", (1600, 800), (128, 128, 128))

    model = s2_llava(model.eval(), tiles_at_once=4)
    processor = s2_processor(processor, model)
    inputs = processor(images=image, text=args.prompt, return_tensors="pt").to(model.dtype)
    tokens = int((inputs["input_ids"] == model.config.image_token_index).sum())
    print(f"images {tuple(inputs['pixel_values'].shape)}, {tokens} image tokens")
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    print(processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
    return {"images": tuple(inputs["pixel_values"].shape), "tokens": (tokens,), "output": tuple(out.shape)}


if __name__ == "__main__":
    main()
