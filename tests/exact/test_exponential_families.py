"""Five families, each against torch, thirty digits and its own edges."""

from itertools import product

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions as d
from torch import inf, nan, tensor
from torch.autograd.functional import hessian
from torch.testing import assert_close

from snippets.exact.exponential_families import (
    kl_exponential,
    kl_gamma,
    kl_geometric,
    kl_laplace,
    kl_poisson,
)

positive = st.floats(0.1, 10)
real = st.floats(-5, 5)
FAMILIES = {
    "exponential": (kl_exponential, d.Exponential, [positive]),
    "gamma": (kl_gamma, d.Gamma, [positive, positive]),
    "laplace": (kl_laplace, d.Laplace, [real, positive]),
    "poisson": (kl_poisson, d.Poisson, [positive]),
    "geometric": (kl_geometric, lambda x: d.Geometric(logits=x), [real]),
}
family = pytest.mark.parametrize("name", FAMILIES)


def draw_rows(data, name):
    ranges = FAMILIES[name][2]
    numbers = [data.draw(r) for r in (*ranges, *ranges)]
    rows = [tensor(x, dtype=torch.float64) for x in numbers]
    return rows[: len(ranges)], rows[len(ranges) :]


@family
@given(data=st.data())
def test_agrees_with_torch(name, data):
    ours, theirs, _ = FAMILIES[name]
    p, q = draw_rows(data, name)
    expected = d.kl_divergence(theirs(*p), theirs(*q))
    # torch adds terms of up to 100 that cancel, each rounded at 1e-14.
    assert_close(ours(*p, *q), expected, rtol=1e-8, atol=1e-10)


@family
@given(data=st.data())
def test_is_exactly_zero_for_the_same_parameters(name, data):
    p, _ = draw_rows(data, name)
    assert FAMILIES[name][0](*p, *p) == 0


@family
@given(data=st.data())
def test_is_never_negative(name, data):
    p, q = draw_rows(data, name)
    assert FAMILIES[name][0](*p, *q) >= 0


@family
@given(data=st.data())
def test_gradient_is_the_derivative(name, data):
    p, q = draw_rows(data, name)
    leaves = [x.requires_grad_() for x in (*p, *q)]
    # Slopes reach 1e4 at a rate of 0.1: differences lose digits.
    assert torch.autograd.gradcheck(FAMILIES[name][0], leaves, rtol=1e-2, atol=1e-4)


FISHER = {
    "exponential": ([2.0], [[1 / 4]]),
    "gamma": ([2.0, 3.0], [[float(mpmath.polygamma(1, 2)), -1 / 3], [-1 / 3, 2 / 9]]),
    "laplace": ([2.0, 3.0], [[1 / 9, 0.0], [0.0, 1 / 9]]),
    "poisson": ([2.0], [[1 / 2]]),
    "geometric": ([0.0], [[1 / 2]]),  # a trial has 1/4, and two are expected
}


@family
def test_the_curvature_at_the_same_policy_is_the_fisher_information(name):
    parameters, fisher = (tensor(x, dtype=torch.float64) for x in FISHER[name])
    ours = FAMILIES[name][0]
    for kl in (lambda x: ours(*x, *parameters), lambda x: ours(*parameters, *x)):
        assert_close(hessian(kl, parameters), fisher)


def test_torch_finds_no_curvature_in_the_mean_of_a_laplace():
    mean, scale = tensor([2.0, 3.0])

    def theirs(x):
        return d.kl_divergence(d.Laplace(x, scale), d.Laplace(mean, scale))

    assert hessian(theirs, mean) == 0  # and the Fisher information is 1 / 9


@family
def test_samples_agree_within_their_error(name):
    torch.manual_seed(0)
    ours, theirs, ranges = FAMILIES[name]
    p, q = ([tensor(x) for x in row][: len(ranges)] for row in ((0.8, 1.5), (1.1, 0.9)))
    drawn = theirs(*p).sample((100_000,))
    log_ratio = theirs(*p).log_prob(drawn) - theirs(*q).log_prob(drawn)
    error = log_ratio.std() / len(drawn) ** 0.5
    # Five standard errors: a right value is outside once in two million seeds.
    assert abs(log_ratio.mean() - ours(*p, *q)) < 5 * error


def integral(p, q, ends):
    with mpmath.workdps(30):
        return float(mpmath.quad(lambda x: p(x) * mpmath.log(p(x) / q(x)), ends))


def summed(p, q):
    with mpmath.workdps(30):
        terms = (p(k) * mpmath.log(p(k) / q(k)) for k in range(400))
        return float(mpmath.fsum(terms))


def got(function, *numbers):
    return function(*(tensor(x, dtype=torch.float64) for x in numbers)).item()


def test_exponential_agrees_with_quadrature():
    def density(rate):
        return lambda x: rate * mpmath.exp(-rate * x)

    exact = integral(density(2), density(3), [0, 1, 5, 30])
    assert_close(got(kl_exponential, 2.0, 3.0), exact, rtol=1e-12, atol=0)


def test_gamma_agrees_with_quadrature():
    def density(a, u):
        return lambda x: u**a * x ** (a - 1) * mpmath.exp(-u * x) / mpmath.gamma(a)

    exact = integral(density(2.5, 1), density(4, 2), [0, 1, 5, 20, 80])
    assert_close(got(kl_gamma, 2.5, 1.0, 4.0, 2.0), exact, rtol=1e-12, atol=0)


def test_laplace_agrees_with_quadrature():
    def density(m, b):
        return lambda x: mpmath.exp(-abs(x - m) / b) / (2 * b)

    exact = integral(density(0.5, 1), density(-1, 2), [-80, -1, 0.5, 5, 80])
    assert_close(got(kl_laplace, 0.5, 1.0, -1.0, 2.0), exact, rtol=1e-12, atol=0)


def test_poisson_agrees_with_a_sum():
    def mass(rate):
        return lambda k: mpmath.mpf(rate) ** k * mpmath.exp(-rate) / mpmath.factorial(k)

    assert_close(
        got(kl_poisson, 3.0, 5.0), summed(mass(3), mass(5)), rtol=1e-12, atol=0
    )


def test_geometric_agrees_with_a_sum():
    def mass(logit):
        p = 1 / (1 + mpmath.exp(-mpmath.mpf(logit)))
        return lambda k: p * (1 - p) ** k

    exact = summed(mass(0.5), mass(-1))
    assert_close(got(kl_geometric, 0.5, -1.0), exact, rtol=1e-12, atol=0)


# Edges: exact forms with 150 digits, over sixty magnitudes and both dtypes.
SIZES = [1e-30, 1e-8, 0.3, 1.0, 40.0, 1e3, 1.01e3, 1e6, 1e12, 1e30, 1.01e30]
LOGITS = [-60.0, -5.0, -0.001, 0.0, 1.0, 30.0, 30.5, 80.0]


def exponential(p, q):
    return mpmath.log(p / q) + q / p - 1


def poisson(p, q):
    return p * mpmath.log(p / q) - p + q


def gamma(a, u, c, v):
    kl = (a - c) * mpmath.digamma(a) - mpmath.loggamma(a) + mpmath.loggamma(c)
    return kl + c * mpmath.log(u / v) + a * (v - u) / u


def laplace(m, b, n, c):
    distance = abs(m - n)
    return mpmath.log(c / b) + distance / c + b / c * mpmath.exp(-distance / b) - 1


def geometric(logit_p, logit_q):
    p, q = (1 / (1 + mpmath.exp(-x)) for x in (logit_p, logit_q))
    return mpmath.log(p / q) + (1 - p) / p * mpmath.log((1 - p) / (1 - q))


EDGES = {
    "exponential": (exponential, product(SIZES, repeat=2)),
    "poisson": (poisson, product(SIZES, repeat=2)),
    "gamma": (gamma, ((a, 3.0, c, v) for a, c, v in product(SIZES, SIZES, (3, 1e9)))),
    "laplace": (
        laplace,
        ((d, b, 0.0, c) for b, c, d in product(SIZES, SIZES, (0.0, 1e-3, 1e9))),
    ),
    "geometric": (geometric, product(LOGITS, repeat=2)),
}
EDGES = {name: (form, list(rows)) for name, (form, rows) in EDGES.items()}


@family
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_right_from_tiny_to_huge(name, dtype):
    form, rows = EDGES[name]
    rows = tensor(rows, dtype=dtype)  # (batch, parameters)
    got = FAMILIES[name][0](*rows.unbind(-1)).tolist()
    for row, value in zip(rows.tolist(), got, strict=True):
        with mpmath.workdps(150):
            exact = float(form(*(mpmath.mpf(x) for x in row)))
        if exact > torch.finfo(dtype).max:
            assert value == inf, row
        elif name == "laplace" and abs(row[0]) < 1e-6 * row[1] and row[1] == row[3]:
            # The square of a distance below half of the digits is rounded away.
            assert 0 <= value < 1e-11, row
        else:
            # A change of a thousandth leaves 13 of 16 digits; float32 rounds once.
            assert_close(value, exact, rtol=max(1e-9, torch.finfo(dtype).eps), atol=0)


@pytest.mark.parametrize("change", [0.1, 1e-3, 1e-6])
@pytest.mark.parametrize("logit", [-30.0, -5.0, 0.0, 1.0, 30.0])
def test_a_geometric_keeps_the_digits_of_a_small_change(logit, change):
    for p, q in ((logit, logit + change), (logit + change, logit)):
        with mpmath.workdps(150):
            exact = float(geometric(mpmath.mpf(p), mpmath.mpf(q)))
        # Terms of the size of the change, for a result of its square: four roundings.
        rtol = 4 * torch.finfo(torch.float64).eps / change
        assert_close(got(kl_geometric, p, q), exact, rtol=rtol, atol=0)


@pytest.mark.parametrize("q", [-2000.0, -1000.0, -999.5, -800.0, -60.0, -1.0])
@pytest.mark.parametrize("p", [-1000.0, -800.0, -60.0, -39.5])
def test_a_geometric_that_hardly_ever_succeeds(p, q):
    with mpmath.workdps(2000):
        exact = geometric(mpmath.mpf(p), mpmath.mpf(q))
        # The derivatives of the KL by the log-odds of P and of Q.
        on_p, on_q = (1 / (1 + mpmath.exp(-mpmath.mpf(x))) for x in (p, q))
        failure = mpmath.log((1 - on_p) / (1 - on_q))
        slopes = [(1 - 1 / on_p) * failure, (on_q - on_p) / on_p]
    leaves = [tensor(x, dtype=torch.float64, requires_grad=True) for x in (p, q)]
    kl = kl_geometric(*leaves)
    if exact > torch.finfo(torch.float64).max:
        assert kl == inf
    else:
        # All exponents are exact, and a step of a half costs no digit of the result.
        assert_close(kl.item(), float(exact), rtol=1e-12, atol=0)
        if max(map(abs, slopes)) < torch.finfo(torch.float64).max:
            got = torch.stack(torch.autograd.grad(kl, leaves))
            expected = tensor([float(x) for x in slopes], dtype=torch.float64)
            assert_close(got, expected, rtol=1e-12, atol=0)


def test_a_geometric_keeps_its_gradient_where_exponentials_overflow():
    p, q = tensor([1000.0, -1000.0], dtype=torch.float64, requires_grad=True)
    kl = kl_geometric(p, q)
    slopes = torch.autograd.grad(kl, (p, q))
    # P succeeds at once, for which Q has log-odds of -1000.
    assert_close(kl, -q)
    assert_close(torch.stack(slopes), tensor([0.0, -1.0], dtype=torch.float64))


@pytest.mark.parametrize("name", ["exponential", "laplace", "geometric"])
def test_torch_is_infinite_or_nan_somewhere_there(name):
    ours, theirs, _ = FAMILIES[name]
    p, q = {
        "exponential": ([1e30], [1e-30]),
        "laplace": ([0.0, 1e-30], [0.0, 1e30]),
        "geometric": ([30.0], [80.0]),
    }[name]
    p, q = tensor(p), tensor(q)
    assert not d.kl_divergence(theirs(*p), theirs(*q)).isfinite()
    assert ours(*p, *q).isfinite()


def test_a_poisson_that_never_counts():
    p = tensor([0.0, 2.0, 0.0], requires_grad=True)
    q = tensor([3.0, 0.0, 0.0], requires_grad=True)
    kl = kl_poisson(p, q)
    assert kl.tolist() == [3.0, inf, 0.0]
    kl.sum().backward()
    assert p.grad.tolist() == [0.0, 0.0, 0.0]
    assert q.grad.tolist() == [1.0, 0.0, 1.0]
    # torch gives nan where both are 0.
    theirs = d.kl_divergence(d.Poisson(p), d.Poisson(q))
    assert theirs[2].isnan()
    assert theirs[1] == inf


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_units_of_a_rate_do_not_matter(scale):
    p, q = tensor(2.0) * scale, tensor(3.0) * scale
    assert_close(kl_exponential(p, q), kl_exponential(tensor(2.0), tensor(3.0)))


def test_a_small_change_keeps_its_digits_in_float32():
    p = tensor(1.0)
    q = p + 2.0**-8
    exact = kl_exponential(p.double(), q.double())
    # x - log1p(x) of x = 2**-8: the difference is 128 times smaller than its terms.
    assert_close(kl_exponential(p, q).double(), exact, rtol=1e-4, atol=0)


WRONG = {
    "exponential": (kl_exponential, [[2.0], [3.0]], [0.0, -1.0, inf, nan]),
    "gamma": (kl_gamma, [[2.0], [1.0], [3.0], [2.0]], [0.0, -1.0, inf, nan]),
    "laplace": (kl_laplace, [[0.0], [1.0], [1.0], [2.0]], [nan]),
    "poisson": (kl_poisson, [[2.0], [3.0]], [-1.0, inf, nan]),
    "geometric": (kl_geometric, [[0.5], [-1.0]], [inf, -inf, nan]),
}


@family
def test_a_parameter_out_of_its_domain_makes_its_row_nan_and_no_other(name):
    function, good, wrong = WRONG[name]
    for place, x in product(range(len(good)), wrong):
        rows = tensor(good, dtype=torch.float64).repeat(1, 2)  # (parameters, batch)
        rows[place, 1] = x
        kl = function(*rows)
        assert kl[0] == function(*rows[:, 0])
        assert kl[1].isnan(), (place, x)


@pytest.mark.parametrize("place", [1, 3])
@pytest.mark.parametrize("wrong", [0.0, -1.0, inf])
def test_a_scale_of_a_laplace_that_is_not_positive_makes_its_row_nan(wrong, place):
    rows = torch.ones(4, 2)
    rows[place, 1] = wrong
    assert kl_laplace(*rows).isnan().tolist() == [False, True]


@family
def test_integers_are_refused(name):
    function, good, _ = WRONG[name]
    rows = [tensor(x) for x in good]
    rows[-1] = rows[-1].long()
    with pytest.raises(ValueError, match="_q must be floating point"):
        function(*rows)


@pytest.mark.parametrize("p", [1e-30, 1e-18, 1e-3, 0.5])
def test_the_gradient_of_a_poisson_keeps_its_digits_at_tiny_rates(p):
    leaves = [tensor(x, dtype=torch.float64, requires_grad=True) for x in (p, 1.0)]
    slopes = torch.autograd.grad(kl_poisson(*leaves), leaves)
    # Of p log(p / q) - p + q: log(p / q) and 1 - p / q.
    expected = [float(mpmath.log(p)), 1 - p]
    assert_close([x.item() for x in slopes], expected, rtol=1e-14, atol=0)


def test_the_gradient_of_a_gamma_keeps_its_digits_where_the_rates_are_far_apart():
    rows = [2.0, 1e-20, 3.0, 1.0]
    leaves = [tensor(x, dtype=torch.float64, requires_grad=True) for x in rows]
    slopes = torch.autograd.grad(kl_gamma(*leaves), leaves)
    a, u, c, v = (mpmath.mpf(x) for x in rows)
    expected = [
        (a - c) * mpmath.polygamma(1, a) + v / u - 1,
        c / u - a * v / u**2,
        mpmath.digamma(c) - mpmath.digamma(a) - mpmath.log(v / u),
        a / u - c / v,
    ]
    assert_close([x.item() for x in slopes], list(map(float, expected)))


@family
@given(data=st.data(), change=st.floats(-1e-3, 1e-3))
def test_is_never_negative_however_close(name, data, change):
    p, _ = draw_rows(data, name)
    for dtype in (torch.float32, torch.float64):
        one = [x.to(dtype) for x in p]
        assert FAMILIES[name][0](*one, *(x * (1 + change) for x in one)) >= 0


def test_refuses_shapes_that_broadcasting_would_square():
    with pytest.raises(ValueError, match=r"rate_q is \[4, 1\]"):
        kl_exponential(torch.ones(4), torch.ones(4, 1))
    with pytest.raises(ValueError, match=r"logits_q is \[4, 1\]"):
        kl_geometric(torch.ones(4), torch.ones(4, 1))
    with pytest.raises(ValueError, match="mean_q"):
        kl_laplace(torch.ones(4), torch.ones(4), torch.ones(4, 1), torch.ones(4))
