"""The ranking head learns an order that scores get wrong; the fusion merges in that order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Boxes, Instances

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.errors import ConfigError
from panoptic_ext.fusion import (
    Detections,
    FusionRule,
    HeuristicFusion,
    PanopticFusion,
    SpatialRankingFusion,
    SpatialRankingHead,
    build_panoptic_fusion,
)
from tests.fusion import dense_fusion as dense
from tests.fusion.test_heuristic import CORNERS

GROUND, SHIRT, TIE = 0, 1, 3  # contiguous ids; 2 is stuff too
SIZE = (24, 32)
SMALL = {"conv_dim": 8, "map_size": 32, "kernel_size": 5}


RULE = FusionRule([SHIRT, TIE], 4, stuff_area_threshold=1)


def make_fusion(seed=0, rule=RULE, **options):
    torch.manual_seed(seed)
    return SpatialRankingFusion(rule, **{**SMALL, **options})


def disturb(fusion, seed=0):
    """Give the predictor weights, which it begins without."""
    generator = torch.Generator().manual_seed(seed)
    weight = fusion.head.predictor.weight
    weight.data = torch.randn(weight.shape, generator=generator) * 2
    return fusion


def person(seed):
    """A shirt with a tie on it: boxes, classes, mask logits, and the map without overlap."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(0, n, (), generator=generator).item() for n in (12, 8))
    shirt = [x, y, x + 16, y + 14]
    tie = [x + 6, y + 1, x + 10, y + 13]
    labels = torch.full(SIZE, GROUND)
    for (x1, y1, x2, y2), label in ((shirt, SHIRT), (tie, TIE)):
        labels[y1:y2, x1:x2] = label
    return {
        "boxes": torch.tensor([shirt, tie]).float(),
        "classes": torch.tensor([SHIRT, TIE]),
        "mask_logits": torch.full((2, 7, 7), 6.0),
    }, labels


def losses(fusion, cases, sizes=None):
    return fusion.training_losses(
        detections=[detections(case, torch.ones(len(case["boxes"]))) for case, _ in cases],
        image_size=sizes or [SIZE] * len(cases),
        sem_seg_target=[labels for _, labels in cases],
    )


def detections(case, scores):
    return Detections(scores=scores, **case)


def nothing(labels=None):
    """An image without instances."""
    case = {
        "boxes": torch.zeros(0, 4),
        "classes": torch.zeros(0, dtype=torch.int64),
        "mask_logits": torch.zeros(0, 7, 7),
    }
    return case, torch.full(SIZE, GROUND) if labels is None else labels


def sem_seg(labels=None):
    labels = torch.full(SIZE, GROUND) if labels is None else labels
    return torch.nn.functional.one_hot(labels, 4).permute(2, 0, 1).float() * 9


SCORES = torch.tensor([0.9, 0.6])  # the tie's is lower


def test_learns_an_order_that_scores_get_wrong():
    fusion = make_fusion()
    case, labels = person(1000)
    plain = HeuristicFusion(RULE)
    before = fusion(sem_seg(), detections(case, SCORES))
    by_score = plain(sem_seg(), detections(case, SCORES))
    assert torch.equal(before[0], by_score[0]) and before[1] == by_score[1]
    assert [s["category_id"] for s in by_score[1]] == [SHIRT, GROUND]  # the tie is lost

    optimizer = torch.optim.Adam(fusion.parameters(), lr=0.01)
    first = last = None
    for step in range(40):
        loss = losses(fusion, [person(2 * step), person(2 * step + 1)])["loss_spatial_ranking"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = first or loss.item(), loss.item()
    assert first == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-5)
    assert last < 0.2 * first
    for seed in range(1000, 1010):
        case, labels = person(seed)
        found, segments = fusion(sem_seg(), detections(case, SCORES))
        things = {s["category_id"]: s for s in segments if s["isthing"]}
        assert list(things) == [TIE, SHIRT]
        assert things[TIE]["score"] == SCORES[1].item() and things[TIE]["instance_id"] == 1
        assert torch.equal(found == things[TIE]["id"], labels == TIE)
        assert torch.equal(found == things[SHIRT]["id"], labels == SHIRT)


def test_equals_detectron2s_merging_by_rank():
    for seed in range(6):
        fusion = disturb(make_fusion(seed, replace(RULE, overlap_threshold=0.4)), seed)
        generator = torch.Generator().manual_seed(seed)
        corner = torch.rand(7, 2, generator=generator) * torch.tensor([24.0, 16.0])
        case = {
            "boxes": torch.cat(
                (corner, corner + 3 + torch.rand(7, 2, generator=generator) * 12), 1
            ),
            "classes": torch.tensor([SHIRT, TIE])[torch.randint(0, 2, (7,), generator=generator)],
            "mask_logits": torch.randn(7, 7, 7, generator=generator) * 3 + 1,
        }
        case["boxes"][:, 2].clamp_(max=32)
        case["boxes"][:, 3].clamp_(max=24)
        scores = torch.rand(7, generator=generator)
        kept = scores >= 0.5
        index = fusion.thing_index[case["classes"]]
        kept_case = {key: value[kept] for key, value in {**case, "classes": index}.items()}
        ranks = fusion.head.rank(**kept_case, image_size=SIZE)
        assert len(set(ranks.tolist())) == len(ranks)
        instances = Instances(SIZE, scores=ranks, pred_classes=case["classes"][kept])
        instances.pred_masks = paste_masks_in_image(
            kept_case["mask_logits"].sigmoid(), kept_case["boxes"], SIZE
        )
        stuff = torch.full(SIZE, GROUND + 1)
        expected, rows = combine_semantic_and_instance_outputs(instances, stuff, 0.4, 1, -1)
        found, segments = fusion(sem_seg(), detections(case, scores))
        assert torch.equal(found, expected)
        places = kept.nonzero()[:, 0].tolist()
        assert [s["instance_id"] for s in segments if s["isthing"]] == [
            places[r["instance_id"]] for r in rows if r["isthing"]
        ]
        assert all(s["score"] == scores[s["instance_id"]].item() for s in segments if s["isthing"])


def fusion_for(case, seed=0):
    return disturb(make_fusion(seed, case.rule), seed)


def slow_merging(fusion, case):
    """Whole masks, one after the other, in the order of the head; as dense.Dense."""
    size = tuple(case.sem_seg.shape[1:])
    order = dense.by_score(case, fusion.rule.score_threshold)
    ranks = fusion.head.rank(
        boxes=case.boxes[order],
        classes=torch.tensor([case.thing_ids.index(c) for c in case.classes[order]]).long(),
        mask_logits=case.mask_logits[order],
        image_size=size,
    ).tolist()
    places = sorted(range(len(order)), key=lambda i: -ranks[i])
    inside = Boxes(case.boxes.clone())
    inside.clip(size)
    masks = torch.zeros(len(case.boxes), *size, dtype=torch.bool)
    seen = inside.nonempty()  # Detectron2 pastes nothing else
    if seen.any():
        masks[seen] = paste_masks_in_image(case.mask_logits[seen].sigmoid(), case.boxes[seen], size)
    owner = torch.full(size, dense.VOID)
    for i in (order[place] for place in places):
        free = masks[i] & (owner == dense.VOID)
        area = masks[i].sum().item()
        if area and 1 - free.sum().item() / area <= case.options["overlap_threshold"]:
            owner[free] = i
    ids = list(range(len(case.sem_seg)))
    if case.options["void_policy"] == "stuff":
        ids = case.stuff_ids
    labels = torch.full(size, dense.VOID)
    if ids:
        labels = torch.tensor(ids)[case.sem_seg[ids].argmax(0)]
        labels[torch.isin(labels, torch.tensor(case.thing_ids))] = dense.VOID
    sure = torch.full(size, torch.inf)
    return dense.assemble(case, owner, labels, [order[place] for place in places], sure)


@pytest.mark.parametrize("corner", sorted(set(CORNERS) - {"only stuff", "all filtered"}))
def test_corner_cases_equal_the_slow_merging(corner):
    for seed in range(3):
        case = dense.make_case(seed, **CORNERS[corner])
        fusion = fusion_for(case, seed)
        found = fusion(case.sem_seg, case.detections)
        dense.check(found, slow_merging(fusion, case))
        if corner == "all void":
            assert found[1] == [] and not found[0].any()
        if "no stuff" in corner:
            assert found[1] and all(s["isthing"] for s in found[1])
        if corner == "stuff policy":
            assert found[0].ne(0).float().mean() > 0.95  # but for stuff that is too small


def test_all_filtered_and_only_instances():
    case = dense.make_case(0, 6, score_threshold=1.0)
    case.scores = case.scores * 0.9
    found, segments = fusion_for(case)(case.sem_seg, case.detections)
    assert segments and not any(s["isthing"] for s in segments)
    assert torch.equal(found, fusion_for(case)(case.sem_seg, dense.make_case(0, 0).detections)[0])
    case = dense.make_case(1, 2, score_threshold=0.0, overlap_threshold=1.0)
    height, width = case.sem_seg.shape[1:]
    case.boxes = torch.tensor([[0.0, 0, width // 2, height], [width // 2, 0, width, height]])
    case.mask_logits = torch.full((2, 7, 7), 9.0)
    found, segments = fusion_for(case)(case.sem_seg, case.detections)
    assert found.ne(0).all() and sorted(s["instance_id"] for s in segments) == [0, 1]


@pytest.mark.parametrize("count", [100, 400])
def test_many_instances(count):
    case = dense.make_case(2, count, size=(48, 60), overlap_threshold=0.9)
    fusion = fusion_for(case)
    found = fusion(case.sem_seg, case.detections)
    dense.check(found, slow_merging(fusion, case))
    assert sum(s["isthing"] for s in found[1]) > 20
    plain = HeuristicFusion(case.rule)
    assert not torch.equal(found[0], plain(case.sem_seg, case.detections)[0])  # the head speaks


def test_corner_cases():
    fusion = disturb(make_fusion())
    empty, _ = nothing()
    for case, scores in ((empty, torch.zeros(0)), (person(1)[0], torch.tensor([0.4, 0.49]))):
        found, segments = fusion(sem_seg(), detections(case, scores))
        assert (found == 1).all() and [s["category_id"] for s in segments] == [GROUND]
    case = {key: value[:1] for key, value in person(1)[0].items()}
    _, segments = fusion(sem_seg(), detections(case, SCORES[:1]))
    assert [(s["category_id"], s["area"]) for s in segments][:1] == [(SHIRT, 16 * 14)]
    off = {**case, "mask_logits": -case["mask_logits"]}  # an empty mask
    assert [s["category_id"] for s in fusion(sem_seg(), detections(off, SCORES[:1]))[1]] == [GROUND]
    with pytest.raises(ValueError, match="sem_seg has 3 channels"):
        fusion(sem_seg()[:3], detections(case, SCORES[:1]))


def test_instances_of_one_class_are_ranked_by_score_where_alike():
    fusion = disturb(make_fusion())
    case, _ = person(3)
    same = {key: value[:1].repeat(3, *[1] * (value.dim() - 1)) for key, value in case.items()}
    _, segments = fusion(sem_seg(), detections(same, torch.tensor([0.6, 0.9, 0.7])))
    assert [s["instance_id"] for s in segments if s["isthing"]] == [1]


def test_inputs_are_not_changed_and_may_be_half_precision():
    fusion = disturb(make_fusion())
    case, _ = person(4)
    given = {"scores": SCORES, **case}
    copies = {key: value.clone() for key, value in given.items()}
    expected, _ = fusion(sem_seg(), Detections(**given))
    assert all(torch.equal(given[key], copies[key]) for key in given)
    half = {**given, "mask_logits": given["mask_logits"].half()}
    found, _ = fusion(sem_seg().half(), Detections(**half))
    assert torch.equal(found, expected)


def test_gradient_reaches_every_parameter_and_no_input():
    fusion = make_fusion()
    case, labels = person(5)
    case["mask_logits"].requires_grad_()
    optimizer = torch.optim.SGD(fusion.parameters(), lr=0.1)
    for _ in range(2):  # the predictor begins at zero and lets nothing through
        optimizer.zero_grad()
        losses(fusion, [(case, labels)])["loss_spatial_ranking"].backward()
        optimizer.step()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert case["mask_logits"].grad is None


@pytest.mark.parametrize("batch", ["no image", "no instance, no thing", "all void"])
def test_empty_batches_have_a_loss_of_zero(batch):
    fusion = disturb(make_fusion())
    void = torch.full(SIZE, 255)
    cases = {
        "no image": [],
        "no instance, no thing": [nothing()],
        "all void": [(person(1)[0], void)],
    }
    loss = losses(fusion, cases[batch])["loss_spatial_ranking"]
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in fusion.parameters())


def test_loss_is_the_mean_over_the_things_of_all_images():
    fusion = disturb(make_fusion(loss_weight=2.0))
    cases = [person(1), nothing(), person(2)]
    total, pixels = 0.0, 0
    for case, labels in cases:  # the map has the image's size, so a cell is a pixel
        channels = torch.zeros(2, *SIZE)
        for (x1, y1, x2, y2), label in zip(
            case["boxes"].int().tolist(), case["classes"], strict=True
        ):
            channels[int(label == TIE), y1:y2, x1:x2] = 1
        logits = fusion.head(channels[None])[0].log_softmax(0)
        for index, label in enumerate((SHIRT, TIE)):
            total -= logits[index][labels == label].sum().item()
            pixels += int((labels == label).sum())
    found = losses(fusion, cases)["loss_spatial_ranking"].item()
    assert found == pytest.approx(2 * total / pixels, rel=1e-5)
    padded = [(case, torch.nn.functional.pad(x, (0, 5, 0, 3), value=TIE)) for case, x in cases]
    assert losses(fusion, padded)["loss_spatial_ranking"].item() == pytest.approx(found)
    with pytest.raises(
        ValueError, match=r"sem_seg_target is \(24, 32\) for an image of \(25, 32\)"
    ):
        losses(fusion, [person(1)], sizes=[(25, 32)])


def test_images_of_a_batch_do_not_touch_each_other():
    fusion = disturb(make_fusion())
    for seed in (1, 2):
        alone = losses(fusion, [person(seed)])["loss_spatial_ranking"].item()
        twice = losses(fusion, [person(seed)] * 2)["loss_spatial_ranking"].item()
        assert alone == pytest.approx(twice, rel=1e-6)


def test_built_from_a_config():
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4
    keys = cfg.MODEL.PANOPTIC_FUSION
    keys.NAME, keys.SCORE_THRESHOLD = "spatial_ranking", 0.7
    keys.SPATIAL_RANKING.CONV_DIM = 5
    keys.SPATIAL_RANKING.NUM_CONVS = 1
    keys.SPATIAL_RANKING.KERNEL_SIZE = 3
    keys.SPATIAL_RANKING.MAP_SIZE = 17
    keys.SPATIAL_RANKING.LOSS_WEIGHT = 0.5
    fusion = build_panoptic_fusion(cfg, thing_ids=[SHIRT, TIE])
    assert isinstance(fusion, SpatialRankingFusion) and fusion.wants_training
    assert not PanopticFusion.wants_training
    assert fusion.rule.score_threshold == 0.7 and fusion.loss_weight == 0.5
    assert fusion.head.map_size == 17 and fusion.head.predictor.in_channels == 5
    assert [tuple(p.shape) for p in fusion.head.convs.parameters()][:2] == [(5, 2, 3, 1), (5,)]
    assert "score_threshold=0.7" in repr(fusion)
    assert all(name.startswith("head.") for name in fusion.state_dict())
    with pytest.raises(ConfigError, match="no thing to rank; use 'heuristic'"):
        build_panoptic_fusion(cfg, thing_ids=[])
    keys.SPATIAL_RANKING.KERNEL_SIZE = 4
    with pytest.raises(ConfigError, match=r"SPATIAL_RANKING\.KERNEL_SIZE is 4; expected an odd"):
        build_panoptic_fusion(cfg, thing_ids=[SHIRT])
    with pytest.raises(ConfigError, match="MAP_SIZE is 0; expected 1 or more"):
        SpatialRankingHead(num_things=2, map_size=0)


def test_fusions_without_parameters_have_no_losses():
    plain = HeuristicFusion(FusionRule([SHIRT, TIE], 4))
    assert not plain.wants_training and losses(plain, [person(1)]) == {}


@pytest.mark.gpu
def test_on_cuda_as_on_cpu(gpu):
    fusion = disturb(make_fusion())
    case, labels = person(6)
    expected, _ = fusion(sem_seg(), detections(case, SCORES))
    loss = losses(fusion, [(case, labels)])["loss_spatial_ranking"].item()
    fusion.to(gpu)
    case = {key: value.to(gpu) for key, value in case.items()}
    found, _ = fusion(sem_seg().to(gpu), detections(case, SCORES.to(gpu)))
    assert torch.equal(found.cpu(), expected)
    on_cuda = losses(fusion, [(case, labels.to(gpu))])["loss_spatial_ranking"].item()
    assert on_cuda == pytest.approx(loss, rel=1e-4)
