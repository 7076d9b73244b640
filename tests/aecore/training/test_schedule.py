import pytest

from aecore.config import Loss, Optim, check_recipe
from aecore.training.schedule import kl_factor, learning_rate


def test_schedules_are_constant_by_default():
    assert {learning_rate(Optim(lr=0.5), step, 7) for step in range(70)} == {0.5}
    assert {kl_factor(Loss(kl_factor=4), step, 7) for step in range(70)} == {4.0}


def test_learning_rate_rises_linearly_then_falls_by_a_cosine():
    optim = Optim(lr=1.0, epochs=4, warmup=1.5, schedule="cosine")
    rates = [learning_rate(optim, step, 10) for step in range(40)]
    assert rates[:15] == pytest.approx([(step + 1) / 16 for step in range(15)])
    assert rates[15] == 1.0
    assert rates[15 + 12] == pytest.approx(0.5, abs=0.04)
    assert rates == rates[:15] + sorted(rates[15:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_kl_factor_rises_linearly_during_its_warmup():
    loss = Loss(kl_factor=4, kl_warmup=0.5)
    assert [kl_factor(loss, step, 4) for step in range(4)] == pytest.approx([4 / 3, 8 / 3, 4, 4])


def test_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(ValueError, match="warmup takes fewer epochs than the 3 of the run"):
        check_recipe({"optim": {"epochs": 3, "warmup": 3}})
