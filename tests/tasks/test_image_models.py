import math

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from recipes.config import read
from recipes.image_runs import Recipe
from tasks.errors import InputError
from tasks.image_classification.model import ImageModelConfig, build_model
from tasks.image_classification.pretrained import PretrainedConfig, fit_pretrained, rate_factors
from tasks.image_classification.rollout import attention_rollout
from tasks.image_classification.swin import SwinConfig
from tasks.image_classification.vit import VitConfig, drop_patches
from transformer_core import BlockConfig, Dropout, Encoder, record_attention

SIZE, PATCH, CLASSES = (32, 48), (8, 16), 7
PRESETS = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
    "vit_huge": "vit_huge_patch14_224",
    "vit_giant": "vit_giant_patch14_224",
    "r50_vit_base_16": "vit_base_r50_s16_224",
    "deit_tiny": "deit_tiny_distilled_patch16_224",
    "deit_small": "deit_small_distilled_patch16_224",
    "deit_base": "deit_base_distilled_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
    "swin_large": "swin_large_patch4_window7_224",
}


def block(dim: int = 48, **fields) -> BlockConfig:
    defaults = {"num_heads": dim // 16, "hidden_dim": 4 * dim, "activation": "gelu", "position": "learned"}
    return BlockConfig(dim=dim, **({"order": "pre", "norm_eps": 1e-6, "dropout": 0.0} | defaults | fields))


def vit(config: BlockConfig | None = None, *, size=SIZE, channels: int = 3, classes: int = CLASSES, **fields):
    own = VitConfig(**({"depth": 3, "patch_size": PATCH} | fields))
    config = ImageModelConfig(image_size=size, block=config or block(), vit=own)
    return build_model(config, classes, channels=channels).eval()


def swin(*, depths=(2, 2), window=(4, 4), dim: int = 32, **fields):
    settings = SwinConfig(depths=depths, window=window)
    own = block(dim, **({"position": "relative", "norm_eps": 1e-5} | fields))
    return build_model(ImageModelConfig(kind="swin", block=own, swin=settings), CLASSES, channels=3).eval()


def count_parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def scrambled(model: nn.Module) -> nn.Module:
    """Large random weights everywhere, heads, biases, norms and layer scales too."""
    for weight in model.parameters():
        nn.init.normal_(weight, 0.0 if weight.dim() > 1 else 0.5, 0.05 if weight.dim() > 1 else 0.2)
    return model.eval()


def timm_vit(**fields) -> nn.Module:
    sizes = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": CLASSES}
    return timm.models.vision_transformer.VisionTransformer(**(sizes | fields))


def timm_deit() -> nn.Module:
    sizes = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": CLASSES}
    return timm.models.deit.VisionTransformerDistilled(**sizes)


def timm_hybrid() -> nn.Module:
    sizes = {"img_size": (32, 64), "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": CLASSES}
    return timm.create_model("vit_base_r50_s16_224", **sizes)


def timm_swin(size=(64, 96)) -> nn.Module:
    return timm.models.swin_transformer.SwinTransformer(
        img_size=size, embed_dim=32, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=CLASSES
    )


def torchvision_vit() -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 3, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 192}
    return torchvision.models.VisionTransformer(num_classes=CLASSES, representation_size=40, **sizes)


def torchvision_swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=CLASSES)


PAIRS = {
    "timm": (timm_vit, vit, SIZE),
    "timm, grey": (lambda: timm_vit(in_chans=1), lambda: vit(channels=1), SIZE),
    "timm, LayerScale, QK-norm": (
        lambda: timm_vit(init_values=0.1, qk_norm=True),
        lambda: vit(block(layer_scale=0.1, qk_norm=True)),
        SIZE,
    ),
    "timm, registers": (
        lambda: timm_vit(reg_tokens=3, no_embed_class=True),
        lambda: vit(registers=3, position_of_prefix=False),
        SIZE,
    ),
    "timm, mean": (
        lambda: timm_vit(class_token=False, global_pool="avg", fc_norm=False),
        lambda: vit(class_token=False, pool="mean"),
        SIZE,
    ),
    "timm, attention pooling": (
        lambda: timm_vit(class_token=False, global_pool="map"),
        lambda: vit(class_token=False, pool="attention"),
        SIZE,
    ),
    "timm, attention pooling past other tokens": (
        lambda: timm_vit(reg_tokens=2, global_pool="map"),
        lambda: vit(registers=2, pool="attention"),
        SIZE,
    ),
    "timm, DeiT distilled": (timm_deit, lambda: vit(distillation_token=True), SIZE),
    "timm, hybrid": (
        timm_hybrid,
        lambda: vit(size=(32, 64), depth=2, stem="resnet", patch_size=(1, 1)),
        (32, 64),
    ),
    "timm, Swin": (timm_swin, swin, (64, 96)),
    "torchvision": (torchvision_vit, lambda: vit(size=(32, 32), patch_size=(8, 8), representation_dim=40), (32, 32)),
    "torchvision, Swin": (torchvision_swin, swin, (64, 96)),
    "torchvision, Swin that is padded": (torchvision_swin, swin, (40, 72)),
    "torchvision, Swin that fits one window": (torchvision_swin, swin, (32, 32)),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_with_weights_of_another_library_the_logits_are_its_logits(name, dtype, tolerance):
    make_theirs, make_ours, size = PAIRS[name]
    theirs, ours = scrambled(make_theirs()).to(dtype), make_ours().to(dtype)
    fitted = fit_pretrained(ours, theirs.state_dict())
    ours.load_state_dict(fitted.tensors)
    images = torch.randn(3, 1 if "grey" in name else 3, *size, dtype=dtype)
    with torch.inference_mode():
        expected = theirs(images)
        assert_close(ours(images), expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))
    assert expected.std() > 0.01 and fitted.said == []


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_the_parameters_of_its_twin_in_timm(preset):
    recipe = read(Recipe, [f"--config=recipes/presets/{preset}.yaml"])
    with torch.device("meta"):
        ours = build_model(recipe.model, 1000, channels=3)
        theirs = timm.create_model(PRESETS[preset], num_classes=1000)
    assert count_parameters(ours) == count_parameters(theirs)


@pytest.mark.parametrize(
    ("preset", "patch", "count"),
    [
        ("vit_base", 16, 85_650_437),
        ("vit_base", 32, 87_419_909),
        ("vit_large", 32, 305_463_301),
        ("vit_huge", 14, 630_440_965),
    ],
)
def test_parameters_without_class_token_and_positions_are_those_known(preset, patch, count):
    recipe = read(Recipe, [f"--config=recipes/presets/{preset}.yaml", f"--model.vit.patch_size=[{patch}, {patch}]"])
    with torch.device("meta"):
        model = build_model(recipe.model, 5, channels=3)
    assert count_parameters(model) - model.prefix.numel() - model.position.numel() == count


def test_a_block_of_a_translator_runs_in_a_vit():
    model, config = vit(), block(position="rotary", activation="relu", order="post")
    translator = Encoder(config, depth=2)
    moved = translator.blocks[1]
    before = model.encoder.blocks[0]
    model.encoder.blocks[0] = moved
    assert type(before) is type(moved)
    images = torch.randn(2, 3, *SIZE)
    head = scrambled(model.head)
    logits = model(images)
    assert logits.shape == (2, CLASSES) and logits.isfinite().all() and head is model.head
    logits.sum().backward()
    assert all(weight.grad is not None for weight in moved.parameters())


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary", "none"])
def test_patches_may_change_places_only_where_there_are_no_positions(position):
    model = scrambled(vit(block(position=position), pool="mean"))
    images = torch.randn(2, 3, *SIZE)
    swapped = torch.cat([images[..., PATCH[1] :], images[..., : PATCH[1]]], -1)
    same = torch.allclose(model(images), model(swapped), atol=1e-5)
    assert same == (position == "none")


def test_both_heads_of_a_distilled_model_speak_in_training_and_their_mean_after():
    model = scrambled(vit(distillation_token=True))
    images = torch.randn(2, 3, *SIZE)
    both = model.train()(images)
    assert both.shape == (2, 2, CLASSES)
    assert not torch.allclose(both[:, 0], both[:, 1])
    assert_close(model.eval()(images), both.mean(1))


def test_a_fresh_model_finds_all_classes_equally_likely():
    for model in (vit(), swin()):
        assert (model(torch.randn(2, 3, *SIZE)) == 0).all()


def test_patch_dropout_keeps_a_share_of_the_patches_of_each_image_unchanged():
    patches = torch.arange(2 * 10 * 3).view(2, 10, 3).float()
    kept = drop_patches(patches, 0.4)
    assert kept.shape == (2, 6, 3)
    for image, rows in zip(patches, kept, strict=True):
        found = [[torch.equal(row, patch) for patch in image].index(True) for row in rows]
        assert len(set(found)) == 6
    model = scrambled(vit(patch_dropout=0.5))
    lengths = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].size(1)))
    model.train()(torch.randn(2, 3, *SIZE))
    model.eval()(torch.randn(2, 3, *SIZE))
    assert lengths == [1 + 6, 1 + 12]


@pytest.mark.parametrize("make", [lambda: vit(block(dropout=0.5)), lambda: swin(dropout=0.5)], ids=["vit", "swin"])
def test_features_of_the_patches_are_dropped_in_training_only(make):
    model, images = scrambled(make()), torch.randn(2, 3, *SIZE)
    for name, module in model.named_modules():
        if isinstance(module, Dropout) and name != "dropout":
            module.rate = 0.0
    assert torch.equal(model(images), model(images))
    assert not torch.equal(model.train()(images), model(images))


@pytest.mark.parametrize(
    "make",
    [lambda: vit(block(norm_eps=0.25), pool="attention"), lambda: swin(norm_eps=0.25)],
    ids=["vit", "swin"],
)
def test_every_norm_has_the_eps_of_the_block(make):
    assert {module.eps for module in make().modules() if isinstance(module, nn.LayerNorm)} == {0.25}


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_the_same_when_activations_are_made_again(recompute):
    gradients = []
    for again in (False, recompute):
        torch.manual_seed(3)
        model = scrambled(vit(block(recompute=again, dropout=0.1))).train()
        torch.manual_seed(4)
        model(torch.ones(2, 3, *SIZE)).square().sum().backward()
        gradients.append([weight.grad for weight in model.parameters()])
    assert_close(gradients[1], gradients[0])


def test_padding_is_seen_but_where_the_grid_is_smaller_than_a_window():
    model = scrambled(swin(depths=(2,)))
    with record_attention(model) as maps:
        model(torch.randn(1, 3, 12, 24))  # 3 x 6 tokens in windows of 4 x 4
    for weights, moved in zip(maps.values(), (0, 2), strict=True):
        seen = weights[0][:, 0].sum(1).view(2, 4, 4).transpose(0, 1).reshape(4, 8).roll(moved, 1)
        assert (seen[:3] > 0).all()
        assert (seen[3:] == 0).all()


@pytest.mark.parametrize("size", [(30, 45), (17, 64), (4, 4)])
def test_swin_takes_images_of_any_size(size):
    logits = scrambled(swin())(torch.randn(2, 3, *size))
    assert logits.shape == (2, CLASSES) and logits.isfinite().all()


@pytest.mark.parametrize("pool", ["cls", "mean", "attention"])
def test_rollout_of_a_vit_is_the_product_of_its_attention_matrices(pool):
    model = scrambled(vit(pool=pool, registers=1))
    images = torch.randn(2, 3, *SIZE)
    with record_attention(model) as maps:
        model(images)
    matrices = [weights[0].mean(1) for weights in maps.values()]
    first = {"cls": torch.eye(14)[:1].expand(2, 1, 14), "mean": torch.cat([torch.zeros(2), torch.ones(12) / 12])}
    if pool == "attention":
        shares = torch.cat([torch.zeros(2, 1, 2), matrices.pop()], 2)  # of the patches alone
    else:
        shares = first[pool].expand(2, 1, 14)
    for matrix in reversed(matrices):
        shares = shares @ ((matrix + torch.eye(14)) / 2)
    assert_close(attention_rollout(model, images), shares[:, 0, 2:].view(2, 4, 3))


def test_rollout_of_swin_loses_nothing_where_nothing_is_padded():
    model = scrambled(swin())
    shares = attention_rollout(model, torch.randn(2, 3, 64, 96))
    assert shares.shape == (2, 16, 24)
    assert_close(shares.sum((1, 2)), torch.ones(2))
    assert shares.std() > 1e-5


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("kind", ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def test_weights_of_hugging_face_give_its_logits(tmp_path, kind, saved):
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192}
    fields = sizes | {"image_size": SIZE, "patch_size": PATCH, "layer_norm_eps": 1e-6}
    ours = vit(distillation_token=kind.startswith("DeiT"))
    check_hugging_face(kind, fields, ours, SIZE, tmp_path if saved else None)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (32, 32), (40, 72)])
def test_weights_of_hugging_face_swin_give_its_logits(tmp_path, size, saved):
    fields = {"image_size": size, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    check_hugging_face("SwinForImageClassification", fields, swin(), size, tmp_path if saved else None)


def check_hugging_face(kind: str, fields: dict, ours: nn.Module, size, saved) -> None:
    """Compare with a model of random weights; `saved` is a folder for its file, whose names are others."""
    library = pytest.importorskip("transformers", reason="transformers is not installed")
    config = getattr(library, f"{kind[: kind.index('For')]}Config")(num_labels=CLASSES, **fields)
    theirs = scrambled(getattr(library, kind)(config))
    tensors = theirs.state_dict()
    if saved:
        theirs.save_pretrained(saved)
        tensors = load_file(saved / "model.safetensors")
    ours.load_state_dict(fit_pretrained(ours, tensors, grid=getattr(ours, "grid", None)).tensors)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected, found = theirs(images).logits, ours(images)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_positions_are_stretched_to_another_resolution_as_timm_does():
    small, large = timm_vit(), timm_vit(img_size=(64, 80))
    expected = timm.models.vision_transformer.resample_abs_pos_embed(
        small.pos_embed, large.patch_embed.grid_size, old_size=small.patch_embed.grid_size
    )
    fitted = fit_pretrained(vit(size=(64, 80)), small.state_dict(), grid=(4, 3))
    assert_close(fitted.tensors["position"], expected[0])
    assert fitted.said == ["positions stretched from a grid of [4, 3] to [8, 5]"]


def test_a_square_of_positions_is_not_taken_for_a_line_of_as_many():
    theirs, line = timm_vit(img_size=(32, 64)), vit(size=(16, 128))
    fitted = fit_pretrained(line, theirs.state_dict())
    assert fitted.said == ["positions stretched from a grid of [4, 4] to [2, 8]"]
    assert_close(fitted.tensors, fit_pretrained(line, theirs.state_dict(), grid=(4, 4)).tensors)
    assert fit_pretrained(line, line.state_dict()).said == []


@pytest.mark.parametrize("fields", [{}, {"position_of_prefix": False, "registers": 2}])
def test_images_of_another_size_are_read_as_by_a_model_with_stretched_positions(fields):
    model, images = scrambled(vit(**fields)), torch.randn(2, 3, 64, 80)
    other = vit(size=(64, 80), **fields)
    other.load_state_dict(fit_pretrained(other, model.state_dict(), grid=model.grid).tensors)
    assert_close(model(images), other(images))
    assert not torch.allclose(model(images), model(images.flip(3)))
    with pytest.raises(ValueError, match="only learned positions can be stretched"):
        vit(block(position="rotary"))(images)


def test_relative_positions_of_smaller_windows_are_stretched_row_by_row():
    theirs = torchvision.models.SwinTransformer([4, 4], 32, [2, 2], [2, 4], [3, 3], num_classes=CLASSES)
    fitted = fit_pretrained(swin(window=(5, 5)), scrambled(theirs).state_dict())
    name, table = "stages.0.1.attention.attention.position.weight", "features.1.1.attn.relative_position_bias_table"
    grid = theirs.state_dict()[table].view(1, 5, 5, 2).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, (9, 9), mode="bicubic", antialias=True)
    assert_close(fitted.tensors[name].view(9, 9, 2), expected[0].permute(1, 2, 0))
    assert fitted.said[1] == f"{name} stretched from 5 x 5 offsets to 9 x 9"


def test_relative_positions_of_a_stage_below_one_window_stay_what_they_are():
    theirs, ours = scrambled(timm_swin((24, 24))).double(), swin().double()
    fitted = fit_pretrained(ours, theirs.state_dict())
    ours.load_state_dict(fitted.tensors)
    images = torch.randn(2, 3, 24, 24, dtype=torch.float64)
    with torch.inference_mode():
        assert_close(ours(images), theirs(images), rtol=0, atol=1e-12)
    assert fitted.said == [
        f"stages.1.{block}.attention.attention.position.weight centred from 5 x 5 offsets to 7 x 7" for block in (0, 1)
    ]


def test_a_head_for_other_classes_starts_at_zero_and_says_so():
    theirs = scrambled(timm_vit())
    fitted = fit_pretrained(vit(classes=3), theirs.state_dict())
    assert (fitted.tensors["head.weight"] == 0).all()
    assert fitted.said[0] == "head.weight starts at zero: the file has [7, 48], the model [3, 48]"
    assert_close(fitted.tensors["encoder.norm.weight"], theirs.norm.weight.detach())


def test_weights_that_do_not_fit_are_named():
    tensors = timm_vit().state_dict()
    del tensors["blocks.1.norm1.weight"]
    with pytest.raises(InputError, match=r"encoder\.blocks\.1\.attention_branch\.norm\.weight is missing"):
        fit_pretrained(vit(), tensors)
    with pytest.raises(InputError, match=r"encoder\.blocks\.2.* is not in the model"):
        fit_pretrained(vit(depth=2), timm_vit().state_dict())
    with pytest.raises(InputError, match="none of the known layouts"):
        fit_pretrained(vit(), {"layer.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="12 positions, not 1 and a grid of|13 positions, not 1 and a grid of"):
        fit_pretrained(vit(size=(64, 80)), timm_vit().state_dict())


def test_earlier_blocks_learn_more_slowly_and_a_probe_trains_the_head_alone():
    model = vit()
    factors = rate_factors(model, PretrainedConfig(layer_decay=0.5))
    assert factors["head.weight"] == factors["encoder.norm.bias"] == 1.0
    assert factors["encoder.blocks.2.attention.input.weight"] == 0.5
    assert factors["encoder.blocks.0.feed_forward.wide.bias"] == 0.125
    assert factors["patches.projection.weight"] == factors["prefix"] == factors["position"] == 0.0625
    probe = rate_factors(model, PretrainedConfig(freeze=True))
    assert {name for name, factor in probe.items() if factor} == {"head.weight", "head.bias"}
    assert set(probe) == set(factors) == {name for name, _ in model.named_parameters()}
    windows = rate_factors(swin(), PretrainedConfig(layer_decay=0.5))
    assert windows["mergings.0.norm.weight"] == windows["stages.0.1.attention.attention.position.weight"] == 0.125
    assert windows["patch_norm.weight"] == 0.5**5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: vit(size=(30, 48)), r"image_size=\[30, 48\] cannot be cut into patches of \[8, 16\]"),
        (lambda: VitConfig(class_token=False), "pool=cls reads the class token"),
        (lambda: VitConfig(distillation_token=True, pool="mean"), "choose pool=cls"),
        (lambda: VitConfig(patch_dropout=1.0), r"patch_dropout=1\.0 is no share"),
        (lambda: VitConfig(depth=0), "depth=0"),
        (lambda: vit(block(position="relative")), "position=relative"),
        (lambda: vit(block(position="rotary"), patch_dropout=0.1), "patch_dropout=0"),
        (lambda: swin(depths=()), "depths="),
        (lambda: vit(block(position="sinusoidal"))(torch.zeros(1, 3, 32, 32)), "and the model has"),
    ],
)
def test_settings_that_do_not_go_together_are_told(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_drop_path_grows_from_none_to_its_value_over_all_blocks():
    rates = [each.attention_branch.drop_path.rate for each in vit(block(drop_path=0.2)).encoder.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])
    stages = swin(drop_path=0.3).stages
    rates = [each.feed_forward_branch.drop_path.rate for stage in stages for each in stage]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert math.isclose(sum(rates), 0.6)
