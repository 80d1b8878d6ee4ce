"""Power laws: planted ones are found, intervals cover, and what is none is said to be none."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

from src.utils.power_law import fit_power_law

SIZES = np.repeat([16.0, 64.0, 256.0, 1024.0], 3)


def planted(rng, exponent=0.5, ceiling=0.7, scale=2.0, sd=0.01, sizes=SIZES):
    return ceiling - scale * sizes**-exponent + rng.normal(0, sd, len(sizes))


@pytest.mark.parametrize("known", [True, False])
def test_the_fit_is_scipys(known):
    y = planted(np.random.default_rng(0))
    law = fit_power_law(SIZES, y, 0.7 if known else None)
    if known:
        found, _ = curve_fit(lambda x, b, c: 0.7 - b * x**-c, SIZES, y, p0=(1, 0.3))
        theirs = (0.7, *found)
    else:
        theirs, _ = curve_fit(lambda x, a, b, c: a - b * x**-c, SIZES, y, p0=(0.6, 1, 0.3))
    np.testing.assert_allclose((law.ceiling, law.scale, law.exponent), theirs, rtol=1e-3)
    np.testing.assert_allclose(law(SIZES), law.ceiling - law.scale / SIZES**law.exponent)


def test_a_law_without_error_is_found_exactly():
    y = 0.4 - 1.5 * SIZES**-0.8
    law = fit_power_law(SIZES, y)
    assert not law.reason
    np.testing.assert_allclose((law.exponent, law.ceiling, law.scale), (0.8, 0.4, 1.5), rtol=1e-3)


@pytest.mark.parametrize(("known", "exponent"), [(True, 0.5), (False, 0.5), (True, 0.25)])
def test_the_interval_holds_the_planted_exponent_as_often_as_it_says(known, exponent):
    """1,000 studies of four sizes and three seeds: 95 % within the Monte Carlo error (SD .007)."""
    rng = np.random.default_rng(1)
    laws = [
        fit_power_law(SIZES, planted(rng, exponent, sd=0.02), 0.7 if known else None)
        for _ in range(1000)
    ]
    fitted = [law for law in laws if not law.reason]
    assert len(fitted) > 990
    covered = np.mean([law.low <= exponent <= law.high for law in fitted])
    assert covered == pytest.approx(0.95, abs=0.022)
    assert np.median([law.exponent for law in fitted]) == pytest.approx(exponent, abs=0.02)


@pytest.mark.parametrize("known", [True, False])
def test_no_growth_is_no_law(known):
    rng = np.random.default_rng(2)
    ceiling = 0.7 if known else None
    laws = [fit_power_law(SIZES, 0.3 + rng.normal(0, 0.02, 12), ceiling) for _ in range(200)]
    assert np.mean([bool(law.reason) for law in laws]) > 0.92
    falling = fit_power_law(SIZES, 0.3 + 2 * SIZES**-0.5, ceiling)
    assert "do not grow" in falling.reason
    assert np.isnan(falling.exponent)
    assert str(falling).startswith("no power law")


def test_what_the_points_do_not_bound_is_said():
    assert "2 sizes and 2 points" in fit_power_law([16, 64], [0.1, 0.2], 0.7).reason
    assert "2 sizes" in fit_power_law([16, 16, 64, 64], [0.1, 0.11, 0.2, 0.2]).reason
    # Growth that stops after the first size: any steep law fits.
    step = np.where(SIZES > 16, 0.5, 0.1) + np.tile([-0.01, 0, 0.01], 4)
    assert "not bounded" in fit_power_law(SIZES, step).reason
    logarithm = 0.05 * np.log(SIZES) + np.tile([-0.03, 0, 0.03], 4)
    assert "not bounded" in fit_power_law(SIZES, logarithm).reason
