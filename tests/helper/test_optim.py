"""The distillation-oriented optimizer against its equations, written out for single numbers."""

import pytest
import torch

from helper.optim import DOT, backward, decayed_and_other, make_optimizer

NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


def test_both_gradients_by_hand():
    p = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    lr, m, delta, wd = 0.1, 0.9, 0.075, 0.01
    optimizer = DOT([p], lr=lr, momentum=m, delta=delta, weight_decay=wd)
    value, v_task, v_kd = 2.0, None, None
    for _ in range(4):
        backward(optimizer, (p**2).sum(), (3 * p).sum(), NO_SCALER)
        optimizer.step()
        g_task, g_kd = 2 * value + wd * value, 3.0
        v_task = g_task if v_task is None else (m - delta) * v_task + g_task
        v_kd = g_kd if v_kd is None else (m + delta) * v_kd + g_kd
        value -= lr * (v_task + v_kd)
        assert p.item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("which", ["task", "distillation"])
def test_one_gradient_is_sgd(which):
    start = torch.tensor([2.0, -1.0], dtype=torch.float64)
    p, q = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    other = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    dot = DOT([p, other], lr=0.1, momentum=0.9, delta=0.075, weight_decay=0.01)
    sgd = torch.optim.SGD([q], lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(4):
        parts = [(p**2).sum(), other.sum()]
        backward(dot, *(parts if which == "task" else parts[::-1]), NO_SCALER)
        dot.step()
        backward(sgd, (q**2).sum(), 0, NO_SCALER)
        sgd.step()
        assert torch.allclose(p, q, rtol=1e-12)


def test_only_distillation():
    p = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = DOT([p], lr=0.1, momentum=0.9, delta=0.075, weight_decay=0.0)
    backward(optimizer, 0, (2 * p).sum(), NO_SCALER)
    optimizer.step()
    assert p.item() == pytest.approx(1 - 0.1 * 2)


def test_its_velocities_are_part_of_its_state():
    p = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = DOT([p], lr=0.1, momentum=0.9, delta=0.075, weight_decay=0.0)
    backward(optimizer, (p**2).sum(), p.sum(), NO_SCALER)
    optimizer.step()
    again = DOT([p], lr=0.1, momentum=0.9, delta=0.075, weight_decay=0.0)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[p].keys() == {"task", "distillation"}


def test_gradients_of_sgd_are_those_of_the_sum():
    p = torch.nn.Parameter(torch.tensor([1.0]))
    backward(torch.optim.SGD([p], lr=0.1), (p**2).sum(), (5 * p).sum(), NO_SCALER)
    assert p.grad.item() == pytest.approx(7.0)


def test_the_scaler_multiplies_the_loss():
    p = torch.nn.Parameter(torch.tensor([1.0]))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    backward(torch.optim.SGD([p], lr=0.1), (p**2).sum(), (5 * p).sum(), scaler)
    assert p.grad.item() == pytest.approx(8 * 7.0)


def test_adamw_spares_biases_and_norms():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3), torch.nn.Conv2d(3, 4, 1))
    module.token = torch.nn.Parameter(torch.zeros(1, 1, 3))
    module.frozen = torch.nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    decayed, others = decayed_and_other(module)
    assert {id(p) for p in decayed} == {id(p) for p in (module[0].weight, module[2].weight, module.token)}
    assert {id(p) for p in others} == {id(p) for p in (module[0].bias, *module[1].parameters(), module[2].bias)}
    optimizer = make_optimizer("adamw", module, lr=0.1, momentum=0.9, weight_decay=0.05)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    # a step without gradients but their zeros shrinks what is decayed by lr·wd, and nothing else
    before = [p.detach().clone() for p in (module[0].weight, module[0].bias)]
    for parameter in (*decayed, *others):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(module[0].weight, before[0] * (1 - 0.1 * 0.05))
    assert torch.equal(module[0].bias, before[1])


def test_sgd_decays_everything():
    optimizer = make_optimizer("sgd", torch.nn.Linear(2, 2), lr=0.1, momentum=0.9, weight_decay=0.05)
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(2, 0.05)]
