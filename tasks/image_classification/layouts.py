"""The names that other libraries give to the weights of ViT, DeiT and Swin, and ours for them.

A layout is a list of substitutions, applied in order to each name. A new name that ends in `#n` is a part: the parts of
a name are put one under the other.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from tasks.errors import InputError
from tasks.image_classification.stem import DEPTHS

Layout = Sequence[tuple[str, str]]

TIMM_BLOCK: Layout = [
    (r"\.norm1\.", ".attention_branch.norm."),
    (r"\.norm2\.", ".feed_forward_branch.norm."),
    (r"\.(ls1\.gamma|gamma_1)$", ".attention_branch.layer_scale.weight"),
    (r"\.(ls2\.gamma|gamma_2)$", ".feed_forward_branch.layer_scale.weight"),
    (r"\.mlp\.(fc1|0|linear_1)\.", ".feed_forward.wide."),
    (r"\.mlp\.(fc2|3|linear_2)\.", ".feed_forward.narrow."),
    (r"\.attn\.qkv\.", ".attention.input."),
    (r"\.attn\.proj\.", ".attention.output."),
    (r"\.attn\.q_norm\.", ".attention.query_norm."),
    (r"\.attn\.k_norm\.", ".attention.key_norm."),
]
WINDOWS: Layout = [
    (r"\.attn\.relative_position_bias_table$", ".attention.position.weight"),
    (r"\.attention\.", ".attention.attention."),
]
RESNET: Layout = [
    (r"^patch_embed\.backbone\.stem\.conv\.", "stem.convolution."),
    (r"^patch_embed\.backbone\.stem\.norm\.", "stem.norm."),
    *(
        (rf"^patch_embed\.backbone\.stages\.{stage}\.blocks\.{index}\.", f"stem.blocks.{sum(DEPTHS[:stage]) + index}.")
        for stage, depth in enumerate(DEPTHS)
        for index in range(depth)
    ),
    *((rf"^(stem\.blocks\.\d+)\.conv{index + 1}\.", rf"\1.convolutions.{index}.") for index in range(3)),
    *((rf"^(stem\.blocks\.\d+)\.norm{index + 1}\.", rf"\1.norms.{index}.") for index in range(3)),
    (r"\.downsample\.conv\.", ".shortcut.0."),
    (r"\.downsample\.norm\.", ".shortcut.1."),
]
TIMM_VIT: Layout = [
    *RESNET,
    (r"^patch_embed\.proj\.", "patches.projection."),
    (r"^cls_token$", "prefix#0"),
    (r"^dist_token$", "prefix#1"),
    (r"^(reg_token|register_tokens)$", "prefix#2"),
    (r"^pos_embed$", "position"),
    (r"^blocks\.", "encoder.blocks."),
    *TIMM_BLOCK,
    (r"^norm\.", "encoder.norm."),
    (r"^pre_logits\.fc\.", "representation.0."),
    (r"^head_dist\.", "distillation_head."),
    (r"^attn_pool\.latent$", "pool.query"),
    (r"^attn_pool\.q\.(weight|bias)$", r"pool.attention.input.\1#0"),
    (r"^attn_pool\.kv\.(weight|bias)$", r"pool.attention.input.\1#1"),
    (r"^attn_pool\.proj\.", "pool.attention.output."),
    (r"^attn_pool\.", "pool."),
    (r"^pool\.mlp\.fc1\.", "pool.feed_forward.wide."),
    (r"^pool\.mlp\.fc2\.", "pool.feed_forward.narrow."),
]
TORCHVISION_VIT: Layout = [
    (r"^conv_proj\.", "patches.projection."),
    (r"^class_token$", "prefix#0"),
    (r"^encoder\.pos_embedding$", "position"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"encoder.blocks.\1."),
    (r"\.ln_1\.", ".norm1."),
    (r"\.ln_2\.", ".norm2."),
    *TIMM_BLOCK,
    (r"\.self_attention\.in_proj_", ".attention.input."),
    (r"\.self_attention\.out_proj\.", ".attention.output."),
    (r"^encoder\.ln\.", "encoder.norm."),
    (r"^heads\.pre_logits\.", "representation.0."),
    (r"^heads\.head\.", "head."),
]
HUGGING_FACE_BLOCK: Layout = [  # names in a file, and in a model since version 5
    (r"\.layernorm_before\.", ".attention_branch.norm."),
    (r"\.layernorm_after\.", ".feed_forward_branch.norm."),
    (r"\.attention\.((attention|self)\.query|q_proj)\.(.*)$", r".attention.input.\3#0"),
    (r"\.attention\.((attention|self)\.key|k_proj)\.(.*)$", r".attention.input.\3#1"),
    (r"\.attention\.((attention|self)\.value|v_proj)\.(.*)$", r".attention.input.\3#2"),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attention.output."),
    (r"\.(intermediate\.dense|mlp\.fc1)\.", ".feed_forward.wide."),
    (r"\.(output\.dense|mlp\.fc2)\.", ".feed_forward.narrow."),
]
HUGGING_FACE_VIT: Layout = [
    (r"^(vit|deit)\.", ""),
    (r"^embeddings\.patch_embeddings\.", "patches."),
    (r"^embeddings\.cls_token$", "prefix#0"),
    (r"^embeddings\.distillation_token$", "prefix#1"),
    (r"^embeddings\.position_embeddings$", "position"),
    (r"^(encoder\.layer|layers)\.", "encoder.blocks."),
    *HUGGING_FACE_BLOCK,
    (r"^layernorm\.", "encoder.norm."),
    (r"^(classifier|cls_classifier)\.", "head."),
    (r"^distillation_classifier\.", "distillation_head."),
]
MICROSOFT_SWIN: Layout = [
    (r"^patch_embed\.proj\.", "patches.projection."),
    (r"^patch_embed\.norm\.", "patch_norm."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1."),
    *TIMM_BLOCK,
    *WINDOWS,
    (r"^layers\.(\d+)\.downsample\.", r"mergings.\1."),
]
TIMM_SWIN: Layout = [
    *((rf"^layers\.{stage + 1}\.downsample\.", f"mergings.{stage}.") for stage in range(8)),
    *MICROSOFT_SWIN[:-1],
    (r"^head\.fc\.", "head."),
]
HUGGING_FACE_SWIN: Layout = [
    (r"^swin\.", ""),
    (r"^embeddings\.patch_embeddings\.", "patches."),
    (r"^embeddings\.norm\.", "patch_norm."),
    (r"^encoder\.layers\.(\d+)\.blocks\.", r"stages.\1."),
    (r"^encoder\.layers\.(\d+)\.downsample\.", r"mergings.\1."),
    (r"\.(self|relative_position_bias)\.relative_position_bias_table$", ".position.weight"),
    *HUGGING_FACE_BLOCK,
    (r"\.attention\.", ".attention.attention."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
]
TORCHVISION_SWIN: Layout = [
    (r"^features\.0\.0\.", "patches.projection."),
    (r"^features\.0\.2\.", "patch_norm."),
    *((rf"^features\.{2 * stage + 1}\.", f"stages.{stage}.") for stage in range(8)),
    *((rf"^features\.{2 * stage + 2}\.", f"mergings.{stage}.") for stage in range(8)),
    *TIMM_BLOCK,
    *WINDOWS,
]


def detect_layout(tensors: Mapping[str, Tensor]) -> Layout:
    """Tell by its names which library a model comes from; no substitutions for our own.

    Raises InputError where nothing fits.
    """
    signs: list[tuple[str, Layout]] = [
        ("patches.projection.weight", []),
        ("features.1.0.attn.qkv.weight", TORCHVISION_SWIN),
        ("conv_proj.weight", TORCHVISION_VIT),
        *(
            (f"{model}{name}.weight", HUGGING_FACE_VIT)
            for model in ("", "vit.", "deit.")
            for name in ("encoder.layer.0.attention.attention.query", "layers.0.attention.q_proj")
        ),
        *(
            (f"{model}encoder.layers.0.blocks.0.attention.{name}.weight", HUGGING_FACE_SWIN)
            for model in ("", "swin.")
            for name in ("self.query", "q_proj")
        ),
        ("layers.0.downsample.reduction.weight", MICROSOFT_SWIN),
        ("layers.0.blocks.0.attn.qkv.weight", TIMM_SWIN),
        ("blocks.0.attn.qkv.weight", TIMM_VIT),
    ]
    for sign, layout in signs:
        if sign in tensors:
            return layout
    names = ", ".join(sorted(tensors)[:3])
    raise InputError(
        f"the pretrained weights ({names}, ...) have none of the known layouts: ViT, DeiT or Swin of timm, torchvision "
        "or Hugging Face, Swin of Microsoft, or a model of ours."
    )
