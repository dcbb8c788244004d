"""Tiny random models of transformers, saved into a folder with their image processor: no hub."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from torch import nn

FAMILIES = ("detr", "eomt", "eomt_dinov3", "mask2former", "maskformer", "oneformer")
"""Names of `save_tiny`, which are transformers' model types."""

_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_TOKENS = 24  # of OneFormer's texts: a letter each
_SIDE = 64  # pixels, of EoMT's square input and of the shorter side of the others


def save_tiny(
    family: str,
    folder: Path | str,
    classes: Sequence[str],
    *,
    things: Sequence[int] = (),
    seed: int = 0,
) -> str:
    """Save a random model of a family with these classes; see `build_tiny`.

    Args:
        family: one of FAMILIES.
        folder: gets config.json, the weights, preprocessor_config.json, and OneFormer's tokenizer.
        classes: names of the labels, in their order.
        things: label ids of things, which OneFormer's processor knows.
        seed: of the weights.

    Returns:
        The folder, for MODEL.TRANSFORMERS.NAME_OR_PATH.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model, processor = build_tiny(family, classes, seed=seed)
    if family == "oneformer":
        _save_oneformer(folder, processor, classes, things)
    else:
        processor.save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


@cache
def tiny_architecture(family: str, classes: Sequence[str] = ("a", "b")) -> str:
    """Text for MODEL.TRANSFORMERS.ARCHITECTURE, which needs no folder."""
    from panoptic_ext.modeling.transformers_models.source import read_source

    with tempfile.TemporaryDirectory() as folder:
        return read_source(save_tiny(family, folder, classes)).to_text()


def build_tiny(family: str, classes: Sequence[str], *, seed: int = 0) -> tuple[nn.Module, Any]:
    """A random model in eval mode whose classes and masks are sharp enough for segments.

    Returns:
        The model, and its image processor: images have a shorter side of 64 pixels.
    """
    import transformers

    torch.manual_seed(seed)
    names = dict(enumerate(classes))
    model = _BUILDERS[family](transformers, {"id2label": names}).eval()
    _sharpen(model, family)
    size = {"shortest_edge": _SIDE, "longest_edge": 2 * _SIDE}
    if family.startswith("eomt"):
        size = {"shortest_edge": _SIDE, "longest_edge": _SIDE}
        return model, transformers.EomtImageProcessor(size=size, do_pad=True)
    name = {"detr": "Detr", "mask2former": "Mask2Former", "maskformer": "MaskFormer"}
    kind = getattr(transformers, f"{name.get(family, 'OneFormer')}ImageProcessor")
    if family == "oneformer":
        return model, kind
    return model, kind(size=size)


def _resnet(transformers: Any) -> Any:
    return transformers.ResNetConfig(
        layer_type="basic",
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=_STAGES,
    )


def _swin(transformers: Any, **keys: Any) -> Any:
    return transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=_STAGES, **keys,
    )  # fmt: skip


def _detr(transformers: Any, names: dict[str, Any]) -> nn.Module:
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=_resnet(transformers),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=10,
        dropout=0.0,
        auxiliary_loss=True,
        **names,
    )
    return transformers.DetrForSegmentation(config)


def _mask2former(transformers: Any, names: dict[str, Any]) -> nn.Module:
    config = transformers.Mask2FormerConfig(
        backbone_config=_resnet(transformers), use_pretrained_backbone=False, **_DECODER,
        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        dim_feedforward=32, encoder_layers=1, train_num_points=112, **names,
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config)


def _maskformer(transformers: Any, names: dict[str, Any]) -> nn.Module:
    decoder = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=_resnet(transformers), d_model=32, decoder_layers=2, num_queries=10,
        decoder_attention_heads=4, decoder_ffn_dim=32, dropout=0.0,
    )  # fmt: skip
    config = transformers.MaskFormerConfig(
        fpn_feature_size=32, mask_feature_size=32, backbone_config=_resnet(transformers),
        decoder_config=decoder, use_pretrained_backbone=False, **names,
    )  # fmt: skip
    return transformers.MaskFormerForInstanceSegmentation(config)


def _oneformer(transformers: Any, names: dict[str, Any]) -> nn.Module:
    config = transformers.OneFormerConfig(
        backbone_config=_swin(transformers), use_pretrained_backbone=False, **_DECODER,
        mask_dim=32, hidden_dim=32, conv_dim=32, encoder_feedforward_dim=32, encoder_layers=1,
        dim_feedforward=32, query_dec_layers=1, text_encoder_width=32, text_encoder_num_layers=1,
        text_encoder_context_length=_TOKENS, task_seq_len=_TOKENS, max_seq_len=_TOKENS,
        text_encoder_vocab_size=64, train_num_points=112, **names,
    )  # fmt: skip
    return transformers.OneFormerForUniversalSegmentation(config)


def _eomt(transformers: Any, names: dict[str, Any]) -> nn.Module:
    return _converted(
        transformers.EomtForUniversalSegmentation(transformers.EomtConfig(**_VIT, **names))
    )


def _eomt_dinov3(transformers: Any, names: dict[str, Any]) -> nn.Module:
    config = transformers.EomtDinov3Config(intermediate_size=64, **_VIT, **names)
    return _converted(transformers.EomtDinov3ForUniversalSegmentation(config))


def _converted(model: nn.Module) -> nn.Module:
    """A published EoMT has ended the annealing of its attention masks."""
    model.attn_mask_probs.zero_()
    return model


_DECODER = {"num_queries": 10, "decoder_layers": 3, "num_attention_heads": 4}
_VIT = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_queries": 10,
    "num_blocks": 2, "image_size": _SIDE, "patch_size": 16, "train_num_points": 112,
}  # fmt: skip
_BUILDERS: dict[str, Callable[[Any, dict[str, Any]], nn.Module]] = {
    "detr": _detr,
    "eomt": _eomt,
    "eomt_dinov3": _eomt_dinov3,
    "mask2former": _mask2former,
    "maskformer": _maskformer,
    "oneformer": _oneformer,
}
_CLASS_HEADS = ("class_predictor", "class_labels_classifier", "class_embed")
_LAST_MASK_LAYERS = (
    "mask_head.output_conv.",
    "mask_head.out_lay.",
    "mask_head.fc3.",
    "mask_embedder.2.",
    "layers.2.0.",
)


@torch.no_grad()
def _sharpen(model: nn.Module, family: str) -> None:
    """Make queries differ, their classes sure and their masks sharp."""
    for name, tensor in model.named_parameters():
        if "quer" in name and name.endswith("weight") and tensor.dim() == 2:
            tensor.copy_(torch.randn_like(tensor))
        elif "decoder.layers" in name and name.endswith(("q_proj.weight", "k_proj.weight")):
            # Sharp attention: DETR's queries start equal, and differ by what they look at.
            tensor.copy_(torch.randn_like(tensor) * 0.7)
    inputs = {"pixel_values": torch.randn(1, 3, _SIDE, _SIDE)}
    if family == "oneformer":
        inputs["task_inputs"] = torch.zeros(1, _TOKENS, dtype=torch.int64)
    outputs = model(**inputs, output_hidden_states=True)
    masks = outputs.pred_masks if family == "detr" else outputs.masks_queries_logits
    logits = (outputs.logits if family == "detr" else outputs.class_queries_logits)[0]
    factor = 2.5 / (logits - logits.mean(0)).std()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(_CLASS_HEADS):
            module.bias.copy_((module.bias - logits.mean(0)) * factor)
            module.weight.mul_(factor)
    for name, tensor in model.named_parameters():
        if "mask" in name and any(layer in name for layer in _LAST_MASK_LAYERS):
            tensor.mul_(4 / masks.std())


def _save_oneformer(
    folder: Path, kind: Callable[..., Any], classes: Sequence[str], things: Sequence[int]
) -> None:
    """Write OneFormer's processor: names of the classes, and a tokenizer of a few words."""
    import transformers

    info = {str(i): {"name": n, "isthing": int(i in things)} for i, n in enumerate(classes)}
    (folder / "classes.json").write_text(json.dumps(info))
    letters = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    processor = kind(
        size={"shortest_edge": _SIDE, "longest_edge": 2 * _SIDE},
        repo_path=str(folder),
        class_info_file="classes.json",
        num_text=2,
        num_labels=len(classes),
    )
    transformers.OneFormerProcessor(
        image_processor=processor,
        tokenizer=tokenizer,
        task_seq_length=_TOKENS,
        max_seq_length=_TOKENS,
    ).save_pretrained(folder)
