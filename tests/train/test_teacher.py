import torch
from torch import nn
from torch.fx import GraphModule, symbolic_trace

from bnnconvert.train.calibrate import reestimate_batch_norm
from bnnconvert.train.teacher import Teacher, fuse_batch_norms
from tests.train.toys import make_teacher, same_weights

CPU = torch.device("cpu")


class Shared(nn.Module):
    """One convolution for two batch norms, one batch norm behind two convolutions, and one pair that may be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.read, self.read_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.alone, self.alone_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(self.twice(x)) + self.second(self.twice(x * 2))
        z = self.read(y)
        return self.flatten(self.pool(self.alone_norm(self.alone(self.read_norm(z) + z))))


def lively(model: GraphModule) -> GraphModule:
    """Statistics that differ from 0 and 1, so that a wrong fold shows."""
    reestimate_batch_norm(model, [torch.randn(16, 3, 8, 8) * 3 + 1 for _ in range(3)])
    return model.eval()


def test_fusing_keeps_the_outputs_and_the_users_model() -> None:
    model = make_teacher()
    lively(model)
    x = torch.randn(4, 3, 8, 8)
    expected = model(x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teacher = Teacher(model, device=CPU)
    assert not any(node.target in ("stem_norm", "conv_norm") for node in teacher.model.graph.nodes)
    torch.testing.assert_close(teacher(x)[0], expected)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert same_weights(model, model)


def test_shared_and_doubly_read_convolutions_are_left_alone() -> None:
    model = lively(symbolic_trace(Shared()))
    x = torch.randn(4, 3, 8, 8)
    expected = model(x)
    assert fuse_batch_norms(model) == 1
    assert [n.target for n in model.graph.nodes if "norm" in str(n.target)] == ["read_norm"]
    torch.testing.assert_close(model(x), expected)


def test_nothing_is_fused_where_a_loss_looks_inside() -> None:
    teacher = Teacher(make_teacher(), device=CPU, features=["conv_norm"])
    _, features = teacher(torch.randn(2, 3, 8, 8))
    assert features["conv_norm"].shape == (2, 8, 4, 4)
    assert teacher.features.take() == {}


def test_the_teacher_evaluates_and_gives_no_gradient() -> None:
    teacher = Teacher(make_teacher().train(), device=CPU)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(teacher(x)[0], teacher(x)[0]), "dropout must be off"
    assert not teacher(x)[0].requires_grad
