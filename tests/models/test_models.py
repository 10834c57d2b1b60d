"""Every network, every sub-network: against the official code's values, and against itself."""

import copy
import pickle
import threading
from functools import partial

import pytest
import torch
import torch._dynamo.testing
import torchvision
from torch import nn

import models
from models.adaptive import Stage
from models.resnet import AdaptiveResNet
from models.resnet_small import SmallResNet
from tests.deploy.shallow import FAMILIES, shallow
from tests.filled import filled, golden_values, images
from tests.tiny import SIZE, TINY, batch, tiny

MANIFEST, LOGITS = golden_values("manifest.json.gz"), golden_values("logits.json")
# what the fine-tuning of a plain network starts from; vd variants do not exist there
PLAIN = [name for name in TINY if hasattr(torchvision.models, name)]
# what torchvision does not have
PLAIN_OF = {f"resnet{6 * n + 2}": partial(SmallResNet, n) for n in (3, 5, 9)}
DEEP = [name for name in models.MODELS if name in PLAIN_OF or hasattr(torchvision.models, name.replace("vd", ""))]


@pytest.fixture(params=TINY, scope="module")
def model(request: pytest.FixtureRequest) -> models.AdaptiveDepth:
    return tiny(request.param)


@pytest.mark.parametrize("name", MANIFEST)
def test_names_and_shapes_are_the_reference_s(name: str) -> None:
    with torch.device("meta"):
        state = models.build(name).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == MANIFEST[name]


@pytest.mark.parametrize("name", LOGITS)
@torch.no_grad()
def test_logits_are_the_reference_s(name: str) -> None:
    model = models.build(name).eval()
    model.load_state_dict(filled(model.state_dict()))
    outputs = model.forward_all(images(2, 224))
    assert {model.name(skip) for skip in outputs} == LOGITS[name].keys()
    for skip, logits in outputs.items():
        golden = LOGITS[name][model.name(skip)]
        torch.testing.assert_close(logits[:, :8], torch.tensor(golden["head"]), atol=1e-4, rtol=0)
        assert logits.std().item() == pytest.approx(golden["std"], abs=1e-4)
        assert logits.argmax(1).tolist() == golden["argmax"]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet50", 25.583144),
        ("resnet101", 44.602920),
        ("mobilenet_v2", 3.527544),
        ("vit_b_16", 86.592232),
        ("vit_b_32", 88.248808),
        ("swin_t", 28.302562),
        ("swin_v2_t", 28.363090),
    ],
)
def test_parameter_counts_are_the_paper_s(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = models.build(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1e-9)


@pytest.mark.parametrize("name", DEEP)
def test_every_network_is_the_plain_one_plus_twins(name: str) -> None:
    with torch.device(
        "cpu" if name.startswith("regnet") else "meta"
    ):  # torchvision's RegNet computes in its constructor
        model = models.build(name)
        if not isinstance(model, models.AdaptiveDepth):
            return  # of another kind, with tests of its own
        plain = PLAIN_OF[name]() if name in PLAIN_OF else getattr(torchvision.models, name.replace("vd", ""))()
    twins = sum(p.numel() for key, p in model.named_parameters() if "_skip." in key)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters()) + twins
    assert sum(p.numel() for p in model.view().parameters()) == sum(p.numel() for p in plain.parameters())
    assert 0 < twins < 0.02 * sum(p.numel() for p in plain.parameters())
    if name not in TINY:  # counting takes long, and what is true of one depth is of the others
        return
    macs = [model.cost(skip).macs for skip in (model.super_net, model.base_net)]
    assert 0.4 < macs[1] / macs[0] < 0.75


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("resnet50", {"FFFF": 4.089, "TFFF": 3.871, "TTFF": 3.434, "TTTF": 2.779, "TTTT": 2.561}),
        ("mobilenet_v2", {"FFFFF": 0.301, "TTTTT": 0.205}),
        ("swin_t", {"FFFF": 4.491, "TFFF": 4.114, "TTFF": 3.753, "TTTT": 2.340}),
    ],
)
def test_macs_are_the_reference_s(name: str, gmacs: dict[str, float]) -> None:
    with torch.device("meta"):
        model = models.build(name)
    (wanted,) = {len(key) for key in gmacs}
    counted = {key: model.cost([letter == "T" for letter in key]).macs / 1e9 for key in gmacs}
    assert wanted == model.num_skippable_stages
    assert counted == pytest.approx(gmacs, abs=6e-4)


def test_macs_of_attention_are_counted() -> None:
    with torch.device("meta"):
        model = models.vit_b_16().eval()
    assert 17.5e9 < model.cost().macs < 17.6e9


def test_features_are_one_map_a_stage(model: models.AdaptiveDepth) -> None:
    for skip in (model.super_net, model.base_net):
        logits, features = model(batch(), skip, return_features=True)
        assert torch.equal(logits, model(batch(), skip))
        assert len(features) == model.num_skippable_stages
        assert all(feature.ndim == 4 and len(feature) == 2 for feature in features)
        sides = [feature.shape[-1] for feature in features]
        assert sides == sorted(sides, reverse=True)


@torch.no_grad()
def test_tree_walk_and_extraction_equal_single_calls_bit_for_bit(model: models.AdaptiveDepth) -> None:
    x = batch()
    outputs = model.forward_all(x)
    assert list(outputs) == model.subnets
    assert len({tuple(logits.flatten().tolist()) for logits in outputs.values()}) == len(model.subnets)
    some = model.forward_all(x, [model.base_net, model.super_net])
    assert list(some) == [model.base_net, model.super_net]
    assert torch.equal(some[model.base_net], outputs[model.base_net])
    for skip, logits in outputs.items():
        assert torch.equal(model(x, skip), logits)
        plain = model.extract(skip)
        assert torch.equal(plain(x), logits)
        assert type(plain) is type(model).__bases__[1]
        assert not plain.training
        assert not any(isinstance(module, Stage) or module.training for module in plain.modules())
        assert not any("_skip" in name for name, _ in plain.named_modules())
        assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in model.view(skip).parameters())
    assert sum(p.numel() for p in plain.parameters()) == model.cost(skip, SIZE).parameters


@torch.no_grad()
def test_an_extracted_network_shares_nothing(model: models.AdaptiveDepth) -> None:
    before = model(batch(), model.base_net)
    plain = model.extract(model.base_net)
    for parameter in plain.parameters():
        parameter.zero_()
    assert torch.equal(model(batch(), model.base_net), before)


@torch.no_grad()
def test_copies_and_pickles_give_the_same(model: models.AdaptiveDepth) -> None:
    x = batch()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x, model.base_net), model(x, model.base_net))


@torch.no_grad()
def test_runs_in_every_dtype_layout_and_at_batch_1(model: models.AdaptiveDepth) -> None:
    x = batch(1)
    for skip in (model.super_net, model.base_net):
        logits = model(x, skip)
        channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        moved = channels_last(x.to(memory_format=torch.channels_last), skip)
        torch.testing.assert_close(moved, logits, atol=1e-3, rtol=1e-3)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(x, skip)
        assert low.shape == logits.shape
        assert low.isfinite().all()


@pytest.mark.parametrize("name", [name for name in TINY if not name.startswith("vit")])
@torch.no_grad()
def test_runs_at_other_image_sizes(name: str) -> None:
    model = tiny(name)
    for height, width in ((33, 47), (64, 40)):
        for skip in (model.super_net, model.base_net):
            assert model(torch.randn(1, 3, height, width), skip).shape == (1, 7)


@pytest.mark.parametrize("skip", ["TTFF", (True,), (True,) * 9, (1, 0, 1, 0), (True, None, True, True), True])
def test_bad_skip_says_what_was_expected(skip: object) -> None:
    with pytest.raises(ValueError, match=r"4 bools, one per stage"):
        tiny("resnet18")(batch(), skip)


def test_unknown_names_and_settings_are_explained() -> None:
    with pytest.raises(ValueError, match="did you mean resnet50"):
        models.build("resnet_50")
    with pytest.raises(ValueError, match="swin_t has no setting stem; it takes patch_size, window_size"):
        models.build("swin_t", stem="small")
    with pytest.raises(ValueError, match="resnet20 has no setting stem; it takes switchable_norms"):
        models.build("resnet20", stem="small")
    with pytest.raises(ValueError, match="not a multiple"):
        models.build("vit_b_16", image_size=225)


def test_threads_may_run_different_subnetworks_at_once() -> None:
    model, x = tiny("resnet18"), batch()
    with torch.no_grad():
        expected = model.forward_all(x)
    wrong = []

    def work(offset: int) -> None:
        with torch.no_grad():
            for i in range(24):
                skip = model.subnets[(i * 5 + offset) % len(model.subnets)]
                if not torch.equal(model(x, skip), expected[skip]):
                    wrong.append(skip)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_training_touches_only_what_the_subnetwork_uses(model: models.AdaptiveDepth) -> None:
    trained = copy.deepcopy(model).train()
    trained(torch.randn(4, 3, SIZE, SIZE), trained.base_net).sum().backward()
    used = {name for name, p in trained.named_parameters() if p.grad is not None}
    count = sum(p.numel() for name, p in trained.named_parameters() if name in used)
    assert count == model.cost(model.base_net, SIZE).parameters
    trained(torch.randn(4, 3, SIZE, SIZE)).sum().backward()
    assert all(p.grad is not None for p in trained.parameters())


def test_stochastic_depth_is_off_in_mandatory_blocks_of_a_skipped_stage() -> None:
    model = tiny("swin_t", stochastic_depth_prob=0.9).train()
    x = batch()
    torch.manual_seed(0)
    first = model(x, model.base_net)
    assert torch.equal(first, model(x, model.base_net))
    assert not torch.equal(model(x), model(x))


def test_modules_replaced_after_the_first_call_run(model: models.AdaptiveDepth) -> None:
    changed = copy.deepcopy(model)
    for skip in (changed.super_net, changed.base_net):
        changed(batch(), skip)
    ran = set()

    class Noted(nn.Module):
        def __init__(self, wrapped: nn.Module) -> None:
            super().__init__()
            self.wrapped = wrapped

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            ran.add(id(self))
            return self.wrapped(x)

    noted = {}
    for module in list(changed.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (nn.BatchNorm2d, nn.LayerNorm)):
                noted[f"{id(module)} {name}"] = Noted(child)
                setattr(module, name, noted[f"{id(module)} {name}"])
    with torch.no_grad():
        for skip in (changed.super_net, changed.base_net):
            assert torch.equal(changed(batch(), skip), model(batch(), skip))
    assert ran == {id(module) for module in noted.values()}


def test_sync_batch_norm_reaches_the_twins_also_after_a_call() -> None:
    model = tiny("resnet18")
    model(batch(), model.base_net)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert not any(type(module) is nn.BatchNorm2d for module in model.modules())
    assert isinstance(model.layer1[0].bn1_skip, nn.SyncBatchNorm)
    ran = []
    model.layer1[0].bn1_skip.register_forward_hook(lambda norm, *_: ran.append(type(norm)))
    model(batch(), model.base_net)
    assert ran == [nn.SyncBatchNorm]


def test_what_runs_is_in_the_mode_of_what_it_was_made_of() -> None:
    """A frozen block may ask for its own mode in its forward, as functional dropout does."""
    model, modes = tiny("resnet18"), []

    class Asking(type(model.layer1[0])):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes.append(self.training)
            return super().forward(x)

    model.layer1[0].__class__ = Asking
    model = copy.deepcopy(model)
    for expected in (True, False):
        model.train(expected)(batch(4), model.base_net)
        assert modes.pop() is expected
    model.train()
    model.layer1[0].eval()
    model(batch(4))
    assert modes.pop() is False


def test_a_subclass_is_a_network_as_well() -> None:
    class Mine(AdaptiveResNet):
        pass

    model = Mine(torchvision.models.resnet.BasicBlock, (2, 2, 2, 2), num_classes=7).eval()
    plain = model.extract(model.base_net)
    assert type(plain) is torchvision.models.ResNet
    assert torch.equal(plain(batch()), model(batch(), model.base_net))


@torch.no_grad()
def test_logits_of_16_bit_networks_are_float32_and_do_not_tie(model: models.AdaptiveDepth) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        several = [model(batch(), model.base_net), *model.forward_all(batch()).values()]
    for logits in several:
        assert logits.dtype is torch.float32
        assert not torch.equal(logits, logits.bfloat16().float())  # not merely widened afterwards


def test_stages_can_be_sharded() -> None:
    """FSDP gathers a module's weights in hooks of that very module, after giving it a class of its own."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for name in ("resnet18", "vit_b_16"):
            model = tiny(name)
            expected = model.forward_all(batch())
            mesh = init_device_mesh("cpu", (1,))
            blocks = model.encoder.layers if name == "vit_b_16" else [getattr(model, f"layer{n}") for n in (1, 2, 3, 4)]
            for block in blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
            for skip in (model.super_net, model.base_net):
                logits = model(batch(), skip)
                torch.testing.assert_close(logits, expected[skip])
                logits.sum().backward()
    finally:
        dist.destroy_process_group()


def test_hooks_see_mandatory_blocks_under_either_flag() -> None:
    model, seen = tiny("resnet18"), []
    model.layer2.register_forward_hook(lambda *_: seen.append("stage"))
    model.layer2[0].register_forward_hook(lambda *_: seen.append("mandatory"))
    model.layer2[1].register_forward_hook(lambda *_: seen.append("skippable"))
    model(batch())
    assert seen == ["mandatory", "skippable", "stage"]
    seen.clear()
    model(batch(), model.base_net)
    assert seen == ["mandatory", "stage"]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_compile_makes_each_network_once(family: str) -> None:
    torch._dynamo.reset()
    model, x = shallow(family), batch()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for _ in range(3):
        for skip in (model.super_net, model.base_net):
            torch.testing.assert_close(compiled(x, skip), model(x, skip))
    assert counter.frame_count == 2


@torch.no_grad()
def test_all_subnetworks_run_compiled() -> None:
    torch._dynamo.reset()
    model, x = shallow("resnet"), batch()
    expected = model.forward_all(x)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model.compile(fullgraph=True, backend=counter)
    paths = 2 * model.num_skippable_stages
    made_by_round = []
    for _ in range(2):
        for skip in model.subnets:
            torch.testing.assert_close(model(x, skip), expected[skip])
        made_by_round.append(counter.frame_count)
    made, after = made_by_round
    assert made == after
    assert paths < made <= paths + 4  # before the stages, behind them under either flag, the classifier
    plain_copy = copy.deepcopy(model)
    assert torch.equal(plain_copy(x), expected[model.super_net])
    assert counter.frame_count == made


def test_small_stems_keep_small_images() -> None:
    for name in ("resnet18", "mobilenet_v2", "convnext_tiny", "regnet_y_400mf", "resnet20"):
        stem = {} if name == "resnet20" else {"stem": "small"}  # it has no other
        model = models.build(name, num_classes=10, **stem).eval()
        logits, features = model(torch.randn(1, 3, 32, 32), None, return_features=True)
        assert logits.shape == (1, 10)
        assert features[-1].shape[-1] == (8 if name == "resnet20" else 4)


def test_without_switchable_norms_there_are_no_twins() -> None:
    for name in ("resnet18", "mobilenet_v2", "vit_b_16", "swin_t"):
        model = tiny(name, switchable_norms=False)
        assert not any("_skip" in key for key in model.state_dict())
        assert not torch.equal(model(batch()), model(batch(), model.base_net))


@pytest.mark.parametrize("name", PLAIN)
@torch.no_grad()
def test_starts_from_a_plain_network(name: str) -> None:
    plain = getattr(torchvision.models, name)(num_classes=7).eval()
    plain.load_state_dict(filled(plain.state_dict()))
    model = models.build(name, num_classes=7).eval()
    models.load_plain(model, plain.state_dict())
    x = images(1, 224 if "vit" in name else 64)
    assert torch.equal(model(x), plain(x))
    state = model.state_dict()
    twins = [key for key in state if "_skip." in key]
    assert twins
    assert all(torch.equal(state[key], state[key.replace("_skip.", ".")]) for key in twins if "features.0_" not in key)
