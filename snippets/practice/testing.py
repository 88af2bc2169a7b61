"""What is wrong with a KL, or with a loss that estimates one, said in sentences.

Source: the properties that every KL has, the exact KL in float64, and enumeration: the
mean of a loss over all actions is known, and so is the gradient that it should have.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from snippets.exact.categorical import kl_divergence_logits

ROUNDING = 0.01  # bfloat16 rounds by 0.004
MASKS = (-torch.inf, -1e4, -1e8, torch.finfo(torch.float32).min)


def faults_of(kl: Callable[[Tensor, Tensor], Tensor]) -> list[str]:
    """What is wrong with a function that should return KL(P || Q) in nats per row.

    A function may detach P or Q, run without gradients, round its result to bfloat16,
    or refuse bfloat16: none of these is a fault. Reads values on the host.

    Args:
        kl: Takes logits of P and of Q, `(*batch, actions)`, and returns `(*batch)`.

    Returns:
        The faults found, in sentences; none for a right function.
    """
    p = torch.tensor([[0.0, 0.0, 1.0], [2.0, -1.0, 0.0]])
    found = kl(p, p)
    if found.shape != (2,):
        return [f"It returns the shape {[*found.shape]} for a batch of 2."]
    checks = (_values, _gradients, _near, _masks, _underflow, _vocabulary, _axes)
    faults = [] if (found == 0).all() else ["it is not 0 for equal logits"]
    return _sentences([*faults, *(fault for check in checks for fault in check(kl))])


def faults_of_loss(
    loss: Callable[..., Tensor], *, gradient_only: bool = False
) -> list[str]:
    """What is wrong with a loss whose mean should be KL(new || ref), gradient included.

    A function may detach what it likes, or run without gradients: then its value alone
    is looked at. Reads values on the host.

    Args:
        loss: Takes `new_log_probs`, `old_log_probs` and `ref_log_probs` of samples of
            old, `(*batch)`, in nats, by keyword, and returns one loss per sample.
        gradient_only: Whether the value may be another number, as that of a surrogate.

    Returns:
        The faults found, in sentences; none for a right loss.
    """
    faults = []
    for where, drift in (("on-policy", 0.0), ("off-policy", 1.0)):
        new, old, ref = _three_policies(drift)
        found = _apply(loss, new, old, ref)
        if found.shape != new.shape:
            return [f"It returns the shape {[*found.shape]} for {len(new)} samples."]
        mean = (old.exp() * found).sum()
        if not gradient_only:
            faults += [f"{where} {x}" for x in _mean_faults(mean, new, ref)]
        faults += [f"{where} {x}" for x in _slope_faults(mean, new, ref)]
        if gradient_only and not mean.requires_grad:
            return ["It has no gradient: nothing is trained."]
    return _sentences([*faults, *_drifted(loss), *_stretched(loss)])


def _values(kl: Callable[[Tensor, Tensor], Tensor]) -> Iterator[str]:
    p = torch.tensor([[0.0, 0.0, 1.0], [2.0, -1.0, 0.0]])
    q = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    found = kl(p, q).detach()
    right, reverse = kl_divergence_logits(p, q), kl_divergence_logits(q, p)
    yield from _compared(found, right, {"is KL(Q || P): P and Q are swapped": reverse})
    if not _close(kl(p + 5, q - 5).detach(), found):
        yield "it changes with a constant added to all logits: normalise them"


def _gradients(kl: Callable[[Tensor, Tensor], Tensor]) -> Iterator[str]:
    p = torch.tensor([[0.0, 0.0, 1.0], [2.0, -1.0, 0.0]])
    q = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    for side, found, right in _sides(kl, (p, q), (p, q)):
        if _close_row(found, right):
            continue
        if _close_row(found, torch.zeros_like(found)):
            yield f"its gradient to {side} is 0, as if a factor were detached"
        else:
            instead = f"{_short(found[0])}, not {_short(right[0])}"
            yield f"its gradient to {side} is {instead}"


def _near(kl: Callable[[Tensor, Tensor], Tensor]) -> Iterator[str]:
    generator = torch.Generator().manual_seed(0)
    p, change = torch.randn(2, 1000, 4, generator=generator)
    q = p + 1e-4 * change
    found = kl(p, q).detach().double()
    right = kl_divergence_logits(p.double(), q.double())
    if (found < 0).any():
        share = (found < 0).double().mean()
        yield f"it is negative for {share:.0%} of policies that nearly agree"
    error = ((found - right) / right).abs().median()
    if not error < 0.05:  # float32 logits that differ by 1e-4 keep three digits
        yield f"it is {error:.0%} off for policies that nearly agree"


def _masks(kl: Callable[[Tensor, Tensor], Tensor]) -> Iterator[str]:
    p, q = torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([[0.0, 0.5, 1.0]])
    hide = torch.tensor([False, False, True])
    for hidden in MASKS:
        for where, of_q in (("P and Q", hide), ("P alone", torch.zeros_like(hide))):
            soft = p.masked_fill(hide, hidden), q.masked_fill(of_q, hidden)
            hard = p.masked_fill(hide, -torch.inf), q.masked_fill(of_q, -torch.inf)
            found, right = kl(*soft).detach(), kl_divergence_logits(*hard)
            what = f"a mask of {hidden:g} in {where} makes"
            if not _close(found, right):
                yield f"{what} it {found.item():.4g}, not {right.item():.4g}"
            for side, slope, of_right in _sides(kl, soft, hard):
                if not _close_row(slope, of_right):
                    yield f"{what} its gradient to {side} {_short(slope[0])}"
    if not kl(p, q.masked_fill(hide, -torch.inf)).isinf().all():
        yield "it is finite where Q never does what P does, and should be inf"


def _underflow(kl: Callable[[Tensor, Tensor], Tensor]) -> Iterator[str]:
    p, q = torch.tensor([[0.0, -200.0]]), torch.tensor([[0.0, -torch.inf]])
    found = kl(p, q)
    if found.isnan().any():
        yield "it is nan where P underflows and Q has a mask"
    elif found.isfinite().all() and any(
        x is not None and x.isnan().any() for x in _slopes(kl, p, q)
    ):
        yield "its gradient is nan where P underflows and Q has a mask"


def _vocabulary(kl: Callable[[Tensor, Tensor], Tensor]) -> Iterator[str]:
    generator = torch.Generator().manual_seed(0)
    p, change = torch.randn(2, 8, 50_000, generator=generator)
    p, q = p.bfloat16(), (p + 0.1 * change).bfloat16()
    try:
        found = kl(p, q).detach().double()
    except (ValueError, RuntimeError, TypeError):  # refused, which is no wrong number
        return
    right = kl_divergence_logits(p.double(), q.double())
    error = ((found - right) / right).abs().max()
    if not error < 2 * ROUNDING:
        yield f"it is {error:.0%} off over 50,000 actions in bfloat16"


def _axes(kl: Callable[[Tensor, Tensor], Tensor]) -> Iterator[str]:
    try:
        kl(torch.zeros(2, 3), torch.zeros(2, 1))
    except (ValueError, RuntimeError, TypeError, IndexError, AssertionError):
        return
    yield "it takes 3 actions beside 1, and stretches the 1"


def _three_policies(drift: float) -> tuple[Tensor, Tensor, Tensor]:
    new = torch.tensor([1.0, 0.0, -1.0, 0.5]).log_softmax(-1)
    moved = torch.tensor([0.3, -0.4, 0.2, 0.1])
    ref = torch.tensor([-0.5, 1.0, 0.0, 0.3]).log_softmax(-1)
    return new, (new + drift * moved).log_softmax(-1), ref


def _apply(
    loss: Callable[..., Tensor], new: Tensor, old: Tensor, ref: Tensor
) -> Tensor:
    new.requires_grad_()
    return loss(new_log_probs=new, old_log_probs=old.detach(), ref_log_probs=ref)


def _mean_faults(mean: Tensor, new: Tensor, ref: Tensor) -> Iterator[str]:
    right, reverse = kl_divergence_logits(new, ref), kl_divergence_logits(ref, new)
    known = {"is KL(ref || new), the other direction": reverse.detach()[None]}
    yield from _compared(mean.detach()[None], right.detach()[None], known)


def _slope_faults(mean: Tensor, new: Tensor, ref: Tensor) -> Iterator[str]:
    """Gradients to logits, so that what only moves the sum of `new` does not count."""
    if not mean.requires_grad:
        return
    p = new.detach().exp()

    def of_logits(value: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(value, new, allow_unused=True, retain_graph=True)
        slope = torch.zeros_like(p) if slope is None else slope.detach()
        return slope - p * slope.sum()

    found = of_logits(mean)
    right = of_logits(kl_divergence_logits(new, ref))
    known = {
        "is 0: nothing is trained": torch.zeros_like(right),
        "is that of KL(ref || new)": of_logits(kl_divergence_logits(ref, new)),
        "has the wrong sign": -right,
    }
    if _close_row(found, right):
        return
    named = [text for text, slope in known.items() if _close_row(found, slope)]
    fault = named[0] if named else f"is {_short(found)}, not {_short(right)}"
    yield f"its gradient {fault}"


def _drifted(loss: Callable[..., Tensor]) -> Iterator[str]:
    """A token whose log-ratio new / ref is x has a gradient of about x."""
    for dtype in (torch.float32, torch.bfloat16):
        for x in (-30.0, 30.0):
            new = torch.tensor([min(x, 0.0) - 1], dtype=dtype, requires_grad=True)
            ref = torch.tensor([min(-x, 0.0) - 1], dtype=dtype)
            found = _apply(loss, new, new.detach(), ref)
            if not found.isfinite().all():
                yield f"it is {found.item()} at a log-ratio of {x:g} in {dtype}"
            if not found.requires_grad:
                continue
            (slope,) = torch.autograd.grad(found.sum(), new, allow_unused=True)
            value = 0.0 if slope is None else slope.item()
            if not abs(value - x) < 2:  # a baseline of 1 is no fault
                where = f"where log(new/ref) is {x:g} in {dtype}"
                yield f"its gradient is {value:g} {where}"


def _stretched(loss: Callable[..., Tensor]) -> Iterator[str]:
    rows = {"new_log_probs": torch.zeros(4), "old_log_probs": torch.zeros(4)}
    rows["ref_log_probs"] = torch.zeros(4)
    for name in rows:
        given = rows | {name: torch.zeros(4, 1)}
        try:
            loss(**given)
        except (ValueError, RuntimeError, TypeError, IndexError, AssertionError):
            continue
        yield f"it makes a square of {name} as a column beside rows"


def _compared(found: Tensor, right: Tensor, known: dict[str, Tensor]) -> Iterator[str]:
    scale = (found / right).double()
    scales = {1 / torch.tensor(2.0).log().item(): ", which is in bits"}
    scales |= {1 / n: f", as a mean over {n} actions is" for n in (3, 4)}
    named = [text for text, value in known.items() if _close(found, value)]
    if _close(found, right):
        return
    if named:
        yield f"it {named[0]}"
    elif _close(found, -right):
        yield "it has the wrong sign"
    elif _close(scale, scale[0].expand_as(scale)):
        hints = [t for k, t in scales.items() if abs(scale[0] / k - 1) < ROUNDING]
        yield f"it is {scale[0]:.3f} times the KL{hints[0] if hints else ''}"
    else:
        yield f"it is {_short(found)}, not {_short(right)}"


def _sides(
    kl: Callable[[Tensor, Tensor], Tensor],
    given: tuple[Tensor, Tensor],
    clean: tuple[Tensor, Tensor],
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The gradients to P and to Q and the right ones, where there are any."""
    pairs = zip(_slopes(kl, *given), _slopes(kl_divergence_logits, *clean), strict=True)
    for side, (found, right) in zip("PQ", pairs, strict=True):
        if found is not None and right is not None:
            yield side, found, right


def _slopes(
    kl: Callable[[Tensor, Tensor], Tensor], p: Tensor, q: Tensor
) -> tuple[Tensor | None, ...]:
    p, q = p.clone().requires_grad_(), q.clone().requires_grad_()
    value = kl(p, q).sum()
    if not value.requires_grad:
        return None, None
    return torch.autograd.grad(value, (p, q), allow_unused=True)


def _close(found: Tensor, right: Tensor) -> bool:
    return torch.allclose(found.double(), right.double(), rtol=ROUNDING, atol=0)


def _close_row(found: Tensor, right: Tensor) -> bool:
    """Within the rounding of the largest entry, or of a gradient of ordinary size."""
    slack = ROUNDING * right.abs().max().clamp(min=0.1).item()
    return torch.allclose(found.double(), right.double(), rtol=0, atol=slack)


def _sentences(faults: list[str]) -> list[str]:
    return [f"{fault[0].upper()}{fault[1:]}." for fault in faults]


def _short(row: Tensor) -> str:
    return "[" + ", ".join(f"{x:.3g}" for x in row.tolist()) + "]"
