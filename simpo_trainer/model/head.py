"""Log-probabilities of target tokens under a language-model head, in tiles: the full logits never exist.

Shapes: S scored positions, H hidden size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig
from transformers.utils import is_triton_available
from trl.kernels import ChunkedLogProbFunction

# Positions per tile off-GPU. Matrix products gain little above 256 rows; the second number bounds a tile's elements.
TILE_POSITIONS = 256
TILE_ELEMENTS = 2**26
# Off-GPU, exponentials of scored logits are kept for the backward pass, as many tiles of them as this size holds
# (float32: 320 MiB), which saves one of their four matrix products.
KEEP_ELEMENTS = 5 * 2**24
# Vocabulary columns per tile of the Triton kernel.
KERNEL_CHUNK_SIZE = 32768


@dataclass(frozen=True)
class LogitTransform:
    """The step from the product of hidden state and head weight to the softmax: `softcap(scale * z)`."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> "LogitTransform":
        """Read scale and soft-capping from a model's configuration; the head check at start-up backs this up."""
        text = config.get_text_config()
        for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
            if getattr(text, name, None) is not None:
                return cls(scale=getattr(text, name), softcap=getattr(text, "final_logit_softcapping", None))
        scale = 1.0
        if getattr(text, "logits_scaling", None) is not None:
            # Granite and MiniCPM3 divide by it, HyperCLOVA X multiplies.
            scale = text.logits_scaling if text.model_type == "hyperclovax" else 1 / text.logits_scaling
        return cls(scale=scale, softcap=getattr(text, "final_logit_softcapping", None))

    def apply_(self, logits: Tensor) -> Tensor:
        """Transform `logits` in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def __call__(self, logits: Tensor) -> Tensor:
        """Transform `logits` into a new tensor that autograd can follow."""
        logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


# Compiled, the backbone goes without the head: the tiles have sizes of their own, and a module's forward is exchanged.
@torch.compiler.disable
def token_logps(hidden: Tensor, head: nn.Module, targets: Tensor, transform: LogitTransform) -> tuple[Tensor, Tensor]:
    """Log-probability of each target token, and the mean logit at its position.

    Works tile by tile with log-softmax in float32 (float64 for float64 inputs). A plain linear head is differentiated
    by hand; any other head (an adapter on it, a quantised one) computes as it is under activation checkpointing, tile
    by tile, so nothing that it adds is ignored. The head is entered as a module call, once, so that hooks which gather
    sharded weights run for all tiles together.

    Args:
        hidden: hidden states at the scored positions, (S, H).
        head: the model's output embedding.
        targets: token id that each position must predict, (S,).
        transform: scale and soft-capping between head and softmax.

    Returns:
        Log-probabilities in nats, (S,), and mean logits over the vocabulary without gradient, (S,).
    """
    own_forward = head.forward
    if torch.is_grad_enabled() and not hidden.requires_grad and type(head) is not nn.Linear:
        # Backward hooks of a module that learns alone would run before its own backward pass.
        hidden = hidden.detach().requires_grad_()

    def score(hidden: Tensor) -> tuple[Tensor, Tensor]:
        if type(head) is not nn.Linear:
            return _checkpointed_logps(hidden, own_forward, targets, transform)
        if is_triton_available() and hidden.device.type in ("cuda", "xpu"):
            return _kernel_logps(hidden, head.weight, head.bias, targets, transform)
        return _tiled_logps(hidden, head.weight, head.bias, targets, transform)

    return _call_as(head, score, hidden)


def _call_as(module: nn.Module, forward: Callable[[Tensor], tuple[Tensor, Tensor]], hidden: Tensor):
    """Call `module` with another forward: its hooks run, its own computation does not."""
    previous = module.__dict__.get("forward")
    module.forward = forward
    try:
        return module(hidden)
    finally:
        if previous is None:
            del module.forward
        else:
            module.forward = previous


def _checkpointed_logps(
    hidden: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, transform: LogitTransform
) -> tuple[Tensor, Tensor]:
    def score_tile(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = transform(_at_least_float32(head(hidden)))
        logps = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
        return logps, logits.detach().mean(-1)

    tiles = [
        checkpoint(score_tile, h, t, use_reentrant=False)
        for h, t in zip(hidden.split(TILE_POSITIONS), targets.split(TILE_POSITIONS), strict=True)
    ]
    return torch.cat([logps for logps, _ in tiles]), torch.cat([mean for _, mean in tiles])


def _kernel_logps(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, transform: LogitTransform):
    logps, _, _, mean_logits, _ = ChunkedLogProbFunction.apply(
        hidden, weight, bias, targets, 1.0, KERNEL_CHUNK_SIZE, transform.softcap, transform.scale, ("mean_logits",)
    )
    return logps, mean_logits


def _tiled_logps(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, transform: LogitTransform):
    return _TiledLogProb.apply(hidden, weight, bias, targets, transform, torch.is_grad_enabled())


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class _TiledLogProb(torch.autograd.Function):
    """Token log-probabilities of a linear head, near the fewest matrix products that the gradient allows.

    Per tile: one product without gradient; two where the head is frozen (the gradient with respect to the hidden state
    is finished in the forward pass, up to a factor per position); three where the exponentials are kept; four (the
    floor without keeping them) otherwise.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, transform: LogitTransform, grad_enabled: bool):
        ctx.set_materialize_grads(False)
        needs_hidden, needs_weight, needs_bias = (grad_enabled and needed for needed in ctx.needs_input_grad[:3])
        ctx.finished = needs_hidden and not (needs_weight or needs_bias)
        tiles = _Tiles(hidden, weight, bias, transform)
        # Behind a soft cap the slope needs the logits themselves.
        keeps = (needs_weight or needs_bias) and transform.softcap is None
        kept_tiles = KEEP_ELEMENTS // (tiles.size * len(weight)) if keeps else 0
        logps = torch.empty(len(targets), dtype=tiles.dtype, device=hidden.device)
        log_z = torch.empty_like(logps)
        mean_logits = torch.empty_like(logps)
        unit_grad = torch.empty_like(hidden, dtype=tiles.dtype) if ctx.finished else None
        kept = []
        for number, rows in enumerate(tiles.slices):
            logits = tiles.logits(rows, reuse=number >= kept_tiles)
            mean_logits[rows] = logits.mean(-1)
            target_logits = logits.gather(-1, targets[rows, None])[:, 0]
            if unit_grad is not None:
                log_z[rows] = logits.logsumexp(-1)
                ones = torch.ones_like(target_logits)
                unit_grad[rows] = tiles.logit_grad_(logits, log_z[rows], targets[rows], ones) @ tiles.weight
            else:
                log_z[rows] = _exp_and_log_sum_(logits)
            if number < kept_tiles:
                kept.append(logits)
            logps[rows] = target_logits - log_z[rows]

        ctx.kept_tiles = len(kept)
        ctx.transform = transform
        ctx.compute_dtype = tiles.compute_dtype
        ctx.save_for_backward(hidden, weight, bias, targets, log_z, unit_grad, *kept)
        ctx.mark_non_differentiable(mean_logits)
        return logps, mean_logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, _):
        hidden, weight, bias, targets, log_z, unit_grad, *kept = ctx.saved_tensors
        if grad is None:
            return None, None, None, None, None, None
        if ctx.finished:
            return (unit_grad * grad[:, None]).to(hidden.dtype), None, None, None, None, None

        tiles = _Tiles(hidden, weight, bias, ctx.transform, ctx.compute_dtype)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=tiles.dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=tiles.dtype) if needs_bias else None
        for number, rows in enumerate(tiles.slices):
            if number < len(kept):
                logit_grad = tiles.kept_logit_grad_(kept[number], targets[rows], grad[rows])
            else:
                logit_grad = tiles.logit_grad_(tiles.logits(rows), log_z[rows], targets[rows], grad[rows])
            if grad_hidden is not None:
                grad_hidden[rows] = (logit_grad @ tiles.weight).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight.addmm_(logit_grad.t(), hidden[rows].to(tiles.dtype))
            if grad_bias is not None:
                grad_bias += logit_grad.sum(0)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


class _Tiles:
    """Tiles of logits of a linear head, computed as autocast would, softmax and gradients in float32 or float64."""

    def __init__(self, hidden, weight, bias, transform: LogitTransform, compute_dtype: torch.dtype | None = None):
        device = hidden.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        self.compute_dtype = compute_dtype or autocast or hidden.dtype
        self.dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self.hidden, self.bias, self.transform = hidden, bias, transform
        self.head_weight = weight.to(self.compute_dtype)
        self.weight = weight.to(self.dtype)
        self.size = min(TILE_POSITIONS, max(1, TILE_ELEMENTS // len(weight)), max(1, len(hidden)))
        self.slices = [slice(start, start + self.size) for start in range(0, len(hidden), self.size)]
        self._buffer: Tensor | None = None

    def logits(self, rows: slice, reuse: bool = True) -> Tensor:
        """Transformed logits (positions, V) at `rows`; with `reuse` in one buffer that the next call overwrites."""
        hidden = self.hidden[rows].to(self.compute_dtype)
        out = None
        if reuse:
            if self._buffer is None:
                self._buffer = hidden.new_empty(hidden.shape[0], len(self.head_weight))
            out = self._buffer[: hidden.shape[0]]
        logits = torch.mm(hidden, self.head_weight.t(), out=out)
        if self.bias is not None:
            logits.add_(self.bias.to(self.compute_dtype))
        return self.transform.apply_(logits.to(self.dtype))

    def logit_grad_(self, logits: Tensor, log_z: Tensor, targets: Tensor, grad: Tensor) -> Tensor:
        """Overwrite transformed logits with the gradient with respect to the raw ones: `grad * (1[v=t] - p_v)`."""
        slope = None
        if self.transform.softcap is not None:
            slope = 1 - (logits / self.transform.softcap).square_()
        logits.sub_(log_z[:, None]).exp_()
        return self._finish_(logits.mul_(-grad[:, None] * self.transform.scale), targets, grad, slope)

    def kept_logit_grad_(self, exponentials: Tensor, targets: Tensor, grad: Tensor) -> Tensor:
        """The same from kept `exp(logit - max)`, whose row sums normalise them."""
        factor = -grad * self.transform.scale / exponentials.sum(-1)
        return self._finish_(exponentials.mul_(factor[:, None]), targets, grad, None)

    def _finish_(self, logit_grad: Tensor, targets: Tensor, grad: Tensor, slope: Tensor | None) -> Tensor:
        positions = torch.arange(len(targets), device=targets.device)
        logit_grad[positions, targets] += grad * self.transform.scale
        return logit_grad if slope is None else logit_grad.mul_(slope)


def _exp_and_log_sum_(logits: Tensor) -> Tensor:
    """Overwrite `logits` with `exp(logits - max)` of each row and return the rows' log-sum-exp."""
    largest = logits.amax(-1, keepdim=True)
    return logits.sub_(largest).exp_().sum(-1).log_().add_(largest[:, 0])
