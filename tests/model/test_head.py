"""Tiled log-probabilities against the log-softmax of full logits: values and every gradient."""

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models import tiny_model
from simpo_trainer.model import head as head_module
from simpo_trainer.model.head import LogitTransform, _kernel_logps, _tiled_logps, token_logps

# Awkward on purpose: no size divides another, and the last tile is shorter.
POSITIONS, HIDDEN, VOCAB, TILE = 23, 11, 41, 7

TRANSFORMS = {
    "plain": LogitTransform(),
    "scale": LogitTransform(scale=0.3),
    "softcap": LogitTransform(softcap=2.5),
    "both": LogitTransform(scale=1.7, softcap=2.5),
}
every_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(head_module, "TILE_POSITIONS", TILE)


def full_logps(logits: Tensor, targets: Tensor, transform: LogitTransform) -> tuple[Tensor, Tensor]:
    """Log-probabilities and mean logits from all logits at once, at least in float32."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logits = logits * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return logits.log_softmax(-1)[torch.arange(len(targets)), targets], logits.mean(-1)


class Problem:
    """A head with hidden states and targets, and the results of either way through it."""

    def __init__(self, *, bias: bool = True, dtype: torch.dtype = torch.float64, positions: int = POSITIONS):
        torch.manual_seed(0)
        self.head = nn.Linear(HIDDEN, VOCAB, bias=bias).to(dtype)
        nn.init.normal_(self.head.weight)
        self.hidden = torch.randn(positions, HIDDEN, dtype=dtype, requires_grad=True)
        self.targets = torch.randint(VOCAB, (positions,))
        self.factors = torch.randn(positions, dtype=dtype)

    def leaves(self) -> dict[str, Tensor]:
        named = {"hidden": self.hidden} | dict(self.head.named_parameters())
        return {name: leaf for name, leaf in named.items() if leaf.requires_grad}

    def results(self, logps: Tensor, mean_logits: Tensor) -> dict[str, Tensor]:
        """Values, and the gradients of a weighted sum of the log-probabilities."""
        found = {"logps": logps.detach(), "mean_logits": mean_logits.detach()}
        if logps.requires_grad:
            leaves = self.leaves()
            grads = torch.autograd.grad((logps * self.factors).sum(), list(leaves.values()))
            found |= {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}
        return found

    def tiled(self, transform: LogitTransform = TRANSFORMS["plain"]) -> dict[str, Tensor]:
        return self.results(*token_logps(self.hidden, self.head, self.targets, transform))

    def full(self, transform: LogitTransform = TRANSFORMS["plain"]) -> dict[str, Tensor]:
        return self.results(*full_logps(self.head(self.hidden), self.targets, transform))


def plan_of(problem: Problem, transform: LogitTransform) -> str:
    """How the gradient of a call was planned, read from its graph node."""
    node = token_logps(problem.hidden, problem.head, problem.targets, transform)[0].grad_fn
    if node is None or node.finished:
        return "none" if node is None else "finish"
    return {0: "recompute", -(-POSITIONS // TILE): "keep"}.get(node.kept_tiles, "keep some")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Equal up to a share of the largest element of each tensor."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close = {"rtol": 0, "atol": tolerance * value.abs().max().item()}
        torch.testing.assert_close(found[name], value, **close, msg=lambda text, name=name: f"{name}: {text}")


# ---- Values and gradients, by plan ----


# Elements that may be kept, by plan.
ROOM = {"keep": -(-POSITIONS // TILE) * TILE * VOCAB, "keep some": 3 * TILE * VOCAB - 1}


@pytest.mark.parametrize("plan", ["none", "finish", "keep", "keep some", "recompute"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@every_transform
def test_tiles_equal_full_logits(plan, bias, transform, monkeypatch):
    """Without gradient; with a frozen head; with exponentials kept (of all tiles or two); with tiles computed twice."""
    problem = Problem(bias=bias)
    monkeypatch.setattr(head_module, "KEEP_ELEMENTS", ROOM.get(plan, TILE * VOCAB - 1))
    if plan == "finish":
        problem.head.requires_grad_(False)
    with torch.no_grad() if plan == "none" else contextlib.nullcontext():
        # With soft-capping, exponentials do not tell the slope: they are not kept.
        expected = "recompute" if plan in ROOM and transform.softcap is not None else plan
        assert plan_of(problem, transform) == expected
        assert_same(problem.tiled(transform), problem.full(transform), 1e-12)


@pytest.mark.parametrize("keep_elements", [0, 2**20])
@pytest.mark.parametrize("trains", [("weight",), ("bias",), ("hidden", "bias"), ("weight", "bias")], ids="+".join)
def test_any_part_of_the_head_may_be_frozen(trains, keep_elements, monkeypatch):
    monkeypatch.setattr(head_module, "KEEP_ELEMENTS", keep_elements)
    problem = Problem()
    for name, leaf in problem.leaves().items():
        leaf.requires_grad_(name in trains)
    found = problem.tiled()
    assert {f"gradient of {name}" for name in trains} < found.keys()
    assert_same(found, problem.full(), 1e-12)


@pytest.mark.parametrize("positions", [1, TILE - 1, TILE, TILE + 1, 3 * TILE])
@pytest.mark.parametrize("keep_elements", [0, 2**20])
def test_any_number_of_positions(positions, keep_elements, monkeypatch):
    monkeypatch.setattr(head_module, "KEEP_ELEMENTS", keep_elements)
    problem = Problem(positions=positions)
    assert_same(problem.tiled(), problem.full(), 1e-12)


@pytest.mark.parametrize(("elements", "expected"), [(1, {1}), (3 * VOCAB, {3, POSITIONS % 3})])
def test_a_large_vocabulary_makes_tiles_shorter(elements, expected, monkeypatch):
    """Down to one position, where even one exceeds the bound."""
    monkeypatch.setattr(head_module, "TILE_ELEMENTS", elements)
    problem = Problem()
    with RecordShapes() as shapes:
        found = problem.tiled()
    weight = (HIDDEN, VOCAB)
    assert {shape[0] for shape in shapes.found if shape[1:] == (VOCAB,) and shape != weight} == expected
    assert_same(found, problem.full(), 1e-12)


@pytest.mark.parametrize("keep_elements", [0, 2**20])
@every_transform
def test_float32(transform, keep_elements, monkeypatch):
    monkeypatch.setattr(head_module, "KEEP_ELEMENTS", keep_elements)
    problem = Problem(dtype=torch.float32)
    assert_same(problem.tiled(transform), problem.full(transform), 1e-5)


@pytest.mark.parametrize("keep_elements", [0, 2**20])
@pytest.mark.parametrize("frozen", [False, True])
@every_transform
def test_bfloat16_autocast(transform, keep_elements, frozen, monkeypatch):
    """As exact as full logits under autocast: both round the logits to 8 bits, 2**-8 of the largest one.

    Gradients stay float32 here and are rounded there; both are compared with float64. The factor 1.5 leaves room for
    luck in rounding.
    """
    monkeypatch.setattr(head_module, "KEEP_ELEMENTS", keep_elements)
    problem, exact = Problem(dtype=torch.float32), Problem()
    for part in (problem, exact):
        part.head.requires_grad_(not frozen)
    with torch.no_grad():
        exact.hidden.copy_(problem.hidden)
        exact.factors.copy_(problem.factors)
        exact.targets = problem.targets
        for copy, parameter in zip(exact.head.parameters(), problem.head.parameters(), strict=True):
            copy.copy_(parameter)
    truth = exact.full(transform)
    with torch.autocast("cpu", torch.bfloat16):
        found, full = problem.tiled(transform), problem.full(transform)
    assert found["logps"].dtype == torch.float32
    assert (found["logps"] - truth["logps"]).abs().max() > 1e-4  # its product was one of bfloat16
    for name, value in truth.items():
        error, allowed = ((other[name] - value).norm() / value.norm() for other in (found, full))
        assert error <= 1.5 * allowed, name
        assert error < 0.02, name


def test_float32_log_softmax_of_bfloat16_hidden_states():
    """A wholly bfloat16 head gives float32 log-probabilities and gradients in the dtype of each tensor."""
    problem = Problem(dtype=torch.bfloat16)
    found, full = problem.tiled(), problem.full()
    assert found["logps"].dtype == torch.float32
    # Logits between 8 and 16 are 1/16 apart. Products of other shapes may round that of the target and the largest the
    # other way, a whole step each (seen with torch 2.11).
    torch.testing.assert_close(found["logps"], full["logps"], rtol=0, atol=2 / 16)
    for name in problem.leaves():
        gradient = found[f"gradient of {name}"]
        assert gradient.dtype == torch.bfloat16
        reference = full[f"gradient of {name}"].float()
        assert (gradient.float() - reference).norm() < 0.02 * reference.norm()


def test_tied_weight_gets_the_gradients_of_both_its_uses():
    problem = Problem()
    ids = torch.randint(VOCAB, (POSITIONS,))
    weight = problem.head.weight
    gradients = []
    for score in (token_logps, lambda hidden, head, *rest: full_logps(head(hidden), *rest)):
        hidden = F.embedding(ids, weight).tanh()
        logps, _ = score(hidden, problem.head, problem.targets, TRANSFORMS["plain"])
        gradients.append(torch.autograd.grad((logps * problem.factors).sum(), weight)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_mean_logits_have_no_gradient():
    problem = Problem()
    _, mean_logits = token_logps(problem.hidden, problem.head, problem.targets, TRANSFORMS["plain"])
    assert not mean_logits.requires_grad


@pytest.mark.parametrize("keep_elements", [0, 2**20])
def test_a_second_backward_pass_is_right_or_refused(keep_elements, monkeypatch):
    """Kept exponentials are overwritten by the first pass: a second one must not read them."""
    monkeypatch.setattr(head_module, "KEEP_ELEMENTS", keep_elements)
    problem = Problem()
    logps, _ = token_logps(problem.hidden, problem.head, problem.targets, TRANSFORMS["plain"])
    first = torch.autograd.grad(logps.sum(), problem.hidden, retain_graph=True)
    try:
        second = torch.autograd.grad(logps.sum(), problem.hidden)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("value", [1e4, -1e4])
def test_large_logits_stay_finite(value):
    problem = Problem(dtype=torch.float32)
    with torch.no_grad():
        problem.head.bias[3] = value
    for result in problem.tiled().values():
        assert result.isfinite().all()


# ---- Other heads: called as they are ----


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["lm_head"], r=3, init_lora_weights=False),
        LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    ],
    ids=["lora", "modules_to_save"],
)
@every_transform
def test_adapted_heads(config, transform):
    """An adapter on the head counts in values and gradients, and the frozen base under it gets none."""
    model = get_peft_model(tiny_model().double(), config).double()
    head = model.base_model.model.lm_head
    assert type(head) is not nn.Linear
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))  # no longer what the base has
    torch.manual_seed(0)
    hidden = torch.randn(POSITIONS, model.config.hidden_size, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(model.config.vocab_size, (POSITIONS,))
    factors = torch.randn(POSITIONS, dtype=torch.float64)
    leaves = {"hidden": hidden} | {name: p for name, p in head.named_parameters() if p.requires_grad}
    assert len(leaves) > 1

    def results(logps: Tensor, mean_logits: Tensor) -> dict[str, Tensor]:
        grads = torch.autograd.grad((logps * factors).sum(), list(leaves.values()))
        return {"logps": logps.detach(), "mean_logits": mean_logits} | dict(zip(leaves, grads, strict=True))

    found = results(*token_logps(hidden, head, targets, transform))
    logps, mean_logits = full_logps(head(hidden), targets, transform)
    assert_same(found, results(logps, mean_logits.detach()), 1e-12)
    plain = F.linear(hidden, _base_of(head).weight)
    assert (full_logps(plain, targets, transform)[0] - logps).abs().max() > 0.1  # the adapter is not negligible


def _base_of(head: nn.Module) -> nn.Module:
    base = head.base_layer if hasattr(head, "base_layer") else head.original_module
    assert not base.weight.requires_grad
    return base


class ScaledLinear(nn.Linear):
    """Some other linear head, as a quantised one would be: its weight is not all of it."""

    def forward(self, hidden: Tensor) -> Tensor:
        return 3 * super().forward(hidden)


@every_transform
def test_a_subclass_of_linear_is_not_taken_for_a_plain_head(transform):
    problem = Problem()
    head = ScaledLinear(HIDDEN, VOCAB).double()
    head.load_state_dict(problem.head.state_dict())
    problem.head = head
    assert_same(problem.tiled(transform), problem.full(transform), 1e-12)


# ---- The kernel path, which runs in torch off-GPU ----


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@every_transform
def test_kernel_and_tiles_agree(transform, bias, monkeypatch):
    monkeypatch.setattr(head_module, "KERNEL_CHUNK_SIZE", 13)
    problem = Problem(bias=bias, dtype=torch.float32)
    arguments = problem.hidden, problem.head.weight, problem.head.bias, problem.targets, transform
    assert_same(problem.results(*_kernel_logps(*arguments)), problem.results(*_tiled_logps(*arguments)), 1e-5)


# ---- Hooks ----


@pytest.mark.parametrize("kind", [nn.Linear, ScaledLinear])
def test_hooks_of_the_head_run(kind):
    """Engines that shard weights gather them in such hooks: once, not for each tile."""
    head = kind(HIDDEN, VOCAB)
    calls = []
    head.register_forward_pre_hook(lambda module, arguments: calls.append("before"))
    head.register_forward_hook(lambda module, arguments, output: calls.append("after"))
    token_logps(torch.randn(POSITIONS, HIDDEN), head, torch.zeros(POSITIONS, dtype=torch.long), LogitTransform())
    assert calls == ["before", "after"]


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_head_keeps_its_own_forward(patched, fails):
    """Also one that a library has put on the instance, and also when scoring fails."""
    head = nn.Linear(HIDDEN, VOCAB)
    hidden = torch.randn(2, HIDDEN)
    expected = head(hidden)
    if patched:
        original = head.forward
        head.forward = lambda x: 2 * original(x)
        expected = 2 * expected
    targets = torch.tensor([0, VOCAB if fails else 1])
    with pytest.raises((RuntimeError, IndexError)) if fails else contextlib.nullcontext():
        token_logps(hidden, head, targets, LogitTransform())
    assert ("forward" in vars(head)) == patched
    torch.testing.assert_close(head(hidden), expected)


# ---- Never the full logits ----


class RecordShapes(TorchDispatchMode):
    """Notes the shape of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        values = result if isinstance(result, tuple | list) else [result]
        self.found += [tuple(value.shape) for value in values if isinstance(value, Tensor)]
        return result

    def largest(self) -> int:
        return max(math.prod(shape) for shape in self.found)


@pytest.mark.parametrize("kind", ["none", "finish", "recompute", "softcap", "other head"])
def test_full_logits_never_exist(kind, monkeypatch):
    """Neither in the forward nor in the backward pass is any tensor larger than a tile, the weight or the input."""
    monkeypatch.setattr(head_module, "KEEP_ELEMENTS", 0)
    problem = Problem(positions=10 * TILE)
    if kind == "other head":
        problem.head = ScaledLinear(HIDDEN, VOCAB).double()
    if kind == "finish":
        problem.head.requires_grad_(False)
    transform = LogitTransform(softcap=2.5) if kind == "softcap" else LogitTransform()
    with RecordShapes() as shapes, torch.no_grad() if kind == "none" else contextlib.nullcontext():
        problem.tiled(transform)
    assert (TILE, VOCAB) in shapes.found
    allowed = max(TILE * VOCAB, problem.hidden.numel(), problem.head.weight.numel())
    assert shapes.largest() <= allowed < 10 * TILE * VOCAB
    with RecordShapes() as shapes:
        problem.full(transform)
    assert shapes.largest() == 10 * TILE * VOCAB  # the recorder would have seen it


@pytest.mark.parametrize("kind", ["finish", "recompute", "other head"])
def test_full_logits_are_not_kept_in_parts(kind, monkeypatch):
    """What waits for the backward pass is no more than inputs, weight and a few numbers per position."""
    monkeypatch.setattr(head_module, "KEEP_ELEMENTS", 0)
    problem = Problem(positions=10 * TILE)
    if kind == "other head":
        problem.head = ScaledLinear(HIDDEN, VOCAB).double()
    if kind == "finish":
        problem.head.requires_grad_(False)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        token_logps(problem.hidden, problem.head, problem.targets, LogitTransform())
    assert 0 < sum(kept.values()) < 10 * TILE * VOCAB
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        full_logps(problem.head(problem.hidden), problem.targets, LogitTransform())
    assert sum(kept.values()) >= 10 * TILE * VOCAB  # the hook would have seen it
