"""S2 in a Llava with small random towers: features against the reference algorithm, tokens, images, weights, errors."""

import copy
from functools import partial

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

from examples.s2_llava import small  # noqa: E402
from s2robot.s2 import forward  # noqa: E402
from s2robot.vlm import register, s2_llava, s2_processor  # noqa: E402
from tests.errors import refuses  # noqa: E402

IMAGE = 5  # the token
SMALL = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)


def llava(tower="clip", tile=24, patch=4, layer=-2, strategy="default"):
    """Build a Llava with random weights: 6 x 6 tokens of 16 channels per tile."""
    torch.manual_seed(0)
    kind = {"clip": transformers.CLIPVisionConfig, "siglip": transformers.SiglipVisionConfig}[tower]
    text = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vision = kind(**SMALL, image_size=tile, patch_size=patch)
    how = {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, **how)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    torch.manual_seed(1)  # the tower's parameters come first, so they do not depend on the projector's width
    for p in model.parameters():  # the layers of a freshly initialised small model hardly differ
        p.data.add_(0.1 * torch.randn_like(p))
    return model


def ids(tokens):
    return torch.tensor([[1, *[IMAGE] * tokens, 7, 8]])


def selected(model, pixels, **kwargs):
    """Return the features that the model passes to its projector."""
    seen = []
    hook = model.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model.model.get_image_features(pixels, **kwargs)
    hook.remove()
    return seen[0]


TOWERS = [("clip", 1, "default"), ("clip", 1, "full"), ("siglip", 0, "full")]  # prefix tokens of the tower


@pytest.mark.parametrize(("tower", "prefix", "strategy"), TOWERS)
@pytest.mark.parametrize(("layer", "side"), [(-2, 72), (3, 24)])
@torch.no_grad()
def test_features_match_the_reference(tower, prefix, strategy, layer, side):
    model, x = llava(tower, layer=layer, strategy=strategy), torch.randn(2, 3, side, side)
    tower_alone = partial(copy.deepcopy(model.model.vision_tower), output_hidden_states=True)
    features = lambda tiles: tower_alone(tiles).hidden_states[layer]  # noqa: E731
    expected = forward(features, x, img_sizes=[24, 48, 72], max_split_size=24, num_prefix_token=prefix)
    if strategy == "default":
        expected = expected[:, prefix:]
    actual = selected(s2_llava(model, resize="reference"), x)
    assert actual.shape == (2, 36 + (strategy == "full") * prefix, 3 * 16) and expected.std() > 0.3
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_native_scales_average_areas_and_pool_keeps_more_tokens():
    model, x = llava(), torch.randn(1, 3, 48, 48)
    small = selected(copy.deepcopy(model), torch.nn.functional.avg_pool2d(x, 2))
    features = selected(s2_llava(model, (1, 2), pool=1), x)
    assert features.shape == (1, 144, 32)
    repeated = features[..., :16].unflatten(1, (6, 2, 6, 2))
    torch.testing.assert_close(repeated.mean((2, 4)).flatten(1, 2), small, atol=1e-5, rtol=0)


def test_layers_are_concatenated_and_partial_patches_are_dropped():
    x = torch.randn(1, 3, 72, 72)
    both = selected(s2_llava(llava(layer=[-1, 1]), (1, 3)), x)
    one = [selected(s2_llava(llava(layer=layer), (1, 3)), x) for layer in (-1, 1)]
    assert torch.equal(both, torch.cat(one, dim=-1)) and both.shape == (1, 36, 2 * 2 * 16)
    model = s2_llava(llava("siglip", tile=27, strategy="full"))  # 6 patches of 4 and 3 px, as SigLIP's 384 px
    assert selected(model, torch.randn(1, 3, 81, 81)).shape == (1, 36, 48)


@pytest.mark.parametrize("layer", [-2, [-2, 1]])
@pytest.mark.parametrize(("tower", "prefix", "strategy"), TOWERS)
@torch.no_grad()
def test_zero_initialised_columns_leave_the_logits_unchanged(layer, tower, prefix, strategy):
    model, x = llava(tower, layer=layer, strategy=strategy), torch.randn(1, 3, 24, 24)
    tokens = 36 + (strategy == "full") * prefix
    before = model(input_ids=ids(tokens), pixel_values=x).logits
    large = x.repeat_interleave(3, -1).repeat_interleave(3, -2)  # whose area averages equal x
    after = s2_llava(model)(input_ids=ids(tokens), pixel_values=large).logits
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


def prompt(processor, height, width):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return processor(images=image, text="<image> what is this", return_tensors="pt")


@pytest.mark.parametrize("scales", [(1,), (1, 2, 3)])
def test_processor_and_generate_at_any_scale(scales):
    """At the paper's sizes, 336, 672 and 1008 px produce 576 image tokens; the tower has few channels."""
    model, processor = small()
    model = s2_llava(model.eval(), scales)
    inputs = prompt(s2_processor(processor, model), 700, 500)
    assert inputs["pixel_values"].shape == (1, 3, 336 * scales[-1], 336 * scales[-1])
    assert (inputs["input_ids"] == model.config.image_token_index).sum() == 576
    out = model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert out.shape == (1, inputs["input_ids"].shape[1] + 2)


def test_save_and_load(tmp_path):
    model, processor = small()
    model = s2_llava(model.eval(), (1, 2), pool=4, resize="reference", tiles_at_once=4)
    processor = s2_processor(processor, model)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    register()
    again = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path)
    inputs = prompt(processor, 90, 130)
    loaded = prompt(transformers.AutoProcessor.from_pretrained(tmp_path), 90, 130)
    assert inputs.keys() == loaded.keys() and all(torch.equal(inputs[key], loaded[key]) for key in inputs)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**loaded).logits)
    assert again.model.vision_tower.layout == model.model.vision_tower.layout


def test_gradients_reach_only_the_requested_parts():
    for frozen in (False, True):
        model = s2_llava(llava(), only_projector=frozen).train()
        model(input_ids=ids(36), pixel_values=torch.randn(1, 3, 72, 72), labels=ids(36)).loss.backward()
        trained = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        projector = {name for name, _ in model.named_parameters() if "multi_modal_projector" in name}
        assert projector <= trained and (trained == projector) == frozen
        columns = model.model.multi_modal_projector.linear_1.weight.grad.view(32, 3, 16)
        assert (columns.abs().amax(dim=(0, 2)) > 0).all()  # columns initialised to zero train too
        assert not frozen or not any(p.requires_grad for p in model.model.vision_tower.parameters())


def test_unsupported_models_are_one_error_line_and_stay_unchanged():
    vision, text = transformers.ViTConfig(**SMALL, image_size=24, patch_size=4), llava().config.text_config
    other = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    quantised = llava()
    quantised.model.multi_modal_projector.linear_1 = torch.nn.Bilinear(2, 2, 2)
    for model, how, message in (
        (torch.nn.Linear(2, 2), {}, "model: .* got Linear"),
        (transformers.LlavaForConditionalGeneration(other), {}, "model: .* 'vit'"),
        (s2_llava(llava()), {}, "model: .* 's2_vision_tower'"),
        (llava(), {"resize": "area"}, "resize: expected one of native, reference, got 'area'"),
        (llava(), {"scales": (2, 3)}, "scales: expected increasing integers from 1"),
        (llava(tile=27), {"pool": 1}, "pool: .* 18 tokens and 81 px"),
        (quantised, {}, "linear_1: expected a plain Linear of 16 channels, got a Bilinear"),
    ):
        refuses(message, s2_llava, model, **how)
    for layer in (-5, [1, 4]):
        model = llava(layer=layer)
        with pytest.raises(IndexError):
            s2_llava(model)
        assert model.config.vision_config.model_type == "clip_vision_model"
