"""Each gain against the closed-form case of the literature notes; its gradients; and that a student with it exports."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnconvert.binarizers.sign import SignInput, SignWeight
from bnnconvert.errors import UsageError
from bnnconvert.estimators.clip import Clip
from bnnconvert.exporters.packed import export_packed
from bnnconvert.exporters.verify import verify
from bnnconvert.gains import GAINS, build_gain
from bnnconvert.gains.base import Gain, GainSite
from bnnconvert.gains.k_map import KMap
from bnnconvert.gains.squeeze_gate import SqueezeGate
from bnnconvert.gains.static_map import StaticMap
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.runtime import Session, native
from bnnconvert.train.latent import set_stage
from bnnconvert.train.scratch import start_anew
from bnnconvert.values.recipe import Named
from tests.students import trace

LINEAR = GainSite(path="fc", inputs=6, outputs=4)


def conv_site(**changes: object) -> GainSite:
    one: dict[str, object] = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "size": (2, 2)}
    return GainSite(**({"path": "conv", "inputs": 2, "outputs": 3} | one | changes))  # type: ignore[arg-type]


def binary_conv(gain: Callable[[GainSite], Gain], *, bias: bool = True, **settings: object) -> BinaryConv2d:
    conv = nn.Conv2d(4, 6, 3, bias=bias, **settings)  # type: ignore[arg-type]
    site = conv_site(
        inputs=4,
        outputs=6,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        size=tuple(conv(torch.zeros(1, 4, 7, 9)).shape[2:]),
    )
    return BinaryConv2d.from_float(
        conv,
        weight_binarizer=SignWeight(estimator=Clip()),
        input_binarizer=SignInput(4, estimator=Clip()),
        gain=gain(site),
    )


def test_k_map_of_the_notes() -> None:
    x = torch.tensor([[[[1.0, -2], [3, -4]], [[-1, 2], [-3, 4]]]])
    unpadded = KMap(site=conv_site(kernel=(2, 2), padding=(0, 0)))
    assert unpadded.factor(x).tolist() == [[[[2.5]]]]
    # With alpha = 1/2 and a binary dot product of 8 the layer equals the real convolution.
    assert (0.5 * unpadded(x, torch.tensor([[[[8.0]]]]))).item() == 10
    padded = KMap(site=conv_site()).factor(x)
    torch.testing.assert_close(padded, torch.full((1, 1, 2, 2), 10 / 9))


def test_k_map_follows_stride_dilation_and_groups() -> None:
    torch.manual_seed(0)
    site = conv_site(inputs=4, outputs=6, kernel=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
    x = torch.randn(2, 4, 7, 9)
    expected = [
        F.conv2d(half.abs().mean(1, keepdim=True), torch.full((1, 1, 3, 2), 1 / 6), None, (2, 1), (1, 0), (1, 2))
        for half in x.split(2, 1)
    ]
    torch.testing.assert_close(KMap(site=site).factor(x), torch.cat([expected[0]] * 3 + [expected[1]] * 3, 1))


def test_k_map_of_a_linear_layer_is_the_mean_magnitude_of_the_row() -> None:
    gain = KMap(site=LINEAR)
    x, y = torch.tensor([[1.0, -2, 3, 0, 0, -6]]), torch.ones(1, 4)
    torch.testing.assert_close(gain(x, y), torch.full((1, 4), 2.0))


@pytest.mark.parametrize("detach", [False, True])
def test_k_map_s_gradient_to_the_input_may_be_left_out(detach: bool) -> None:
    x = torch.tensor([[1.0, -2.0, 0.5, -0.5, 3.0, 1.0]], requires_grad=True)
    y = torch.full((1, 4), 2.0, requires_grad=True)
    KMap(site=LINEAR, detach=detach)(x, y).sum().backward()
    assert y.grad is not None
    torch.testing.assert_close(y.grad, torch.full((1, 4), 8 / 6))
    if detach:
        assert x.grad is None
    else:
        assert x.grad is not None
        torch.testing.assert_close(x.grad, x.detach().sign() * 8 / 6)


def test_static_map_case_4_of_the_notes() -> None:
    gain = StaticMap(site=conv_site(outputs=2), case=4)
    with torch.no_grad():
        assert gain.channels is not None
        assert gain.rows is not None
        assert gain.columns is not None
        gain.channels.copy_(torch.tensor([1.0, 2]).reshape(2, 1, 1))
        gain.rows.copy_(torch.tensor([1.0, 0.5]).reshape(2, 1))
        gain.columns.copy_(torch.tensor([1.0, 3]))
    y = gain(torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2, 2), 4.0))
    assert y.tolist() == [[[[4, 12], [2, 6]], [[8, 24], [4, 12]]]]
    y.sum().backward()
    assert gain.channels.grad is not None
    assert gain.rows.grad is not None
    assert gain.columns.grad is not None
    assert gain.channels.grad.flatten().tolist() == [24, 24]
    assert gain.rows.grad.flatten().tolist() == [48, 48]
    assert gain.columns.grad.tolist() == [18, 18]


@pytest.mark.parametrize(
    ("case", "shapes"),
    [
        (1, {"channels": (3, 1, 1)}),
        (2, {"pixels": (3, 4, 5)}),
        (3, {"channels": (3, 1, 1), "pixels": (4, 5)}),
        (4, {"channels": (3, 1, 1), "rows": (4, 1), "columns": (5,)}),
    ],
)
def test_static_map_starts_at_the_weights_magnitude(case: int, shapes: dict[str, tuple[int, ...]]) -> None:
    gain = StaticMap(site=conv_site(size=(4, 5)), case=case)  # type: ignore[arg-type]
    assert {name: tuple(p.shape) for name, p in gain.named_parameters()} == shapes
    weight = torch.randn(3, 2, 3, 3)
    gain.calibrate(weight)
    factor = gain(torch.zeros(1, 2, 4, 5), torch.ones(1, 3, 4, 5))
    expected = weight.abs().mean((1, 2, 3)).reshape(1, 3, 1, 1).expand(1, 3, 4, 5)
    torch.testing.assert_close(factor.detach(), expected)


def test_static_map_of_a_linear_layer_is_a_scale_per_output() -> None:
    gain = StaticMap(site=LINEAR, case=4)
    assert {name: tuple(p.shape) for name, p in gain.named_parameters()} == {"channels": (4,)}


def test_static_map_refuses_another_input_size() -> None:
    gain = StaticMap(site=conv_site())
    with pytest.raises(UsageError, match=r"conv: its gain 'static-map' was made for outputs of 2x2 and gets 3x2"):
        gain(torch.zeros(1, 2, 3, 2), torch.zeros(1, 3, 3, 2))
    StaticMap(site=conv_site(), case=1)(torch.zeros(1, 2, 3, 2), torch.zeros(1, 3, 3, 2))


@pytest.mark.parametrize("site", [conv_site(), LINEAR], ids=["conv", "linear"])
def test_squeeze_gate_starts_at_one_half_and_then_depends_on_the_sample(site: GainSite) -> None:
    torch.manual_seed(0)
    gain = SqueezeGate(site=site, reduction=2)
    tail = (2, 2) if site.kernel else ()
    x, y = torch.randn(3, site.inputs, *tail), torch.randn(3, site.outputs, *tail)
    assert torch.equal(gain(x, y), y / 2)
    nn.init.normal_(gain.excite)
    s = x.flatten(2).mean(2) if site.kernel else x
    gate = torch.sigmoid(F.linear(F.relu(F.linear(s, gain.squeeze.flatten(1))), gain.excite.flatten(1)))
    torch.testing.assert_close(gain(x, y), y * gate.reshape(3, -1, *(1,) * len(tail)))
    gain(x, y).sum().backward()
    for parameter in gain.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_squeeze_gate_starts_the_same_each_time() -> None:
    assert torch.equal(SqueezeGate(site=LINEAR).squeeze, SqueezeGate(site=LINEAR).squeeze)


def test_a_gain_multiplies_before_the_bias_is_added() -> None:
    torch.manual_seed(0)
    layer, x = binary_conv(lambda site: KMap(site=site), padding=1).eval(), torch.randn(2, 4, 7, 9)
    assert layer.bias is not None
    assert isinstance(layer.gain, KMap)
    plain = F.conv2d(torch.where(x >= 0, 1.0, -1.0), torch.where(layer.weight >= 0, 1.0, -1.0), None, padding=1)
    torch.testing.assert_close(layer(x), plain * layer.gain.factor(x) + layer.bias.reshape(-1, 1, 1))


@pytest.mark.parametrize("name", GAINS)
def test_a_gain_is_left_out_while_the_operand_that_it_stands_for_is_float(name: str) -> None:
    torch.manual_seed(0)
    layer = binary_conv(lambda site: build_gain(Named(name=name), site, where="test"), bias=False, padding=1).eval()
    assert layer.gain is not None
    layer.gain.calibrate(layer.weight.detach())
    x = torch.randn(2, 4, 7, 9)
    for weights, inputs in ((True, True), (False, True), (True, False)):
        set_stage(layer, weights=weights, inputs=inputs)
        with_gain, gain = layer(x), layer.gain
        layer.gain = None
        applies = {"weights": weights, "inputs": inputs, None: True}[gain.stands_for]
        assert torch.equal(with_gain, layer(x)) != applies
        layer.gain = gain


def test_the_static_map_is_set_anew_when_a_stage_makes_the_weights_binary() -> None:
    layer = binary_conv(lambda site: StaticMap(site=site, case=1))
    set_stage(layer, weights=False, inputs=False)
    set_stage(layer, weights=True, inputs=False)
    assert isinstance(layer.gain, StaticMap)
    assert layer.gain.channels is not None
    torch.testing.assert_close(layer.gain.channels.flatten(), layer.weight.abs().mean((1, 2, 3)))


def test_the_static_map_is_that_of_weights_that_start_anew() -> None:
    layer = binary_conv(lambda site: StaticMap(site=site, case=1))
    start_anew(layer)
    assert isinstance(layer.gain, StaticMap)
    assert layer.gain.channels is not None
    torch.testing.assert_close(layer.gain.channels.flatten(), layer.weight.abs().mean((1, 2, 3)))


class Net(nn.Module):
    """Stem, two binary convolutions, one of them grouped and strided, a binary linear layer, head."""

    def __init__(self, gain: Callable[[GainSite], Gain]) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv1, self.bn1 = binary_conv(gain, padding=1), nn.BatchNorm2d(6)
        self.act1 = nn.Conv2d(6, 4, 1)
        self.conv2 = binary_conv(gain, bias=False, stride=2, padding=2, dilation=2, groups=2)
        self.bn2 = nn.BatchNorm2d(6)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = BinaryLinear.from_float(
            nn.Linear(6, 4),
            weight_binarizer=SignWeight(estimator=Clip()),
            input_binarizer=SignInput(6, estimator=Clip()),
            gain=gain(LINEAR),
        )
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(self.bn0(self.stem(x)))))
        return self.fc(self.hidden(self.pool(self.bn2(self.conv2(x))).flatten(1)))


GAIN_FORMS = [{"name": name} for name in GAINS] + [{"name": "static-map", "case": case} for case in (1, 2, 3)]


@pytest.mark.parametrize("named", GAIN_FORMS, ids=str)
def test_a_student_with_gains_is_exported_and_proven(named: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = trace(Net(lambda site: build_gain(Named(**named), site, where="test")))  # type: ignore[arg-type]
    for module in student.modules():
        if isinstance(module, Gain):
            for parameter in module.parameters():
                nn.init.normal_(parameter)
    x = torch.randn(5, 3, 7, 9)
    path = tmp_path / "net.packed.safetensors"
    report = export_packed(student, path, golden_input=x)
    assert report.predicted_bytes == report.tensor_bytes
    for engine in ("portable", "auto"):
        session = Session(path, engine=engine)  # type: ignore[arg-type]
        checked = verify(student, session, [x])
        assert checked.passed
        assert checked.agreement == 1.0
        assert checked.largest_difference < 1e-4


@pytest.mark.skipif(native.library() is None, reason="installed without the native engine")
@pytest.mark.parametrize("named", GAIN_FORMS, ids=str)
def test_gains_run_in_the_engine(named: dict[str, object], tmp_path: Path) -> None:
    student = trace(Net(lambda site: build_gain(Named(**named), site, where="test")))  # type: ignore[arg-type]
    export_packed(student, tmp_path / "net", golden_input=torch.randn(2, 3, 7, 9))
    session = Session(tmp_path / "net")
    assert {session.executor.place(number) for number in range(len(session.program.nodes))} == {"engine"}


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"name": "k-mapp"}, "did you mean 'k-map'"),
        ({"name": "k-map", "detached": True}, "did you mean 'detach'"),
        ({"name": "static-map", "case": 5}, "option 'case' is 5"),
        ({"name": "squeeze-gate", "reduction": 0}, "option 'reduction' is 0"),
        ({"name": "k-map", "site": 3}, "no option 'site'"),
    ],
)
def test_wrong_names_and_options_are_refused_by_key(named: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=r"layers\[0\]\.gain") as error:
        build_gain(Named(**named), LINEAR, where="layers[0].gain")  # type: ignore[arg-type]
    assert words in str(error.value)


def test_a_weight_only_layer_has_no_k_map_but_the_other_gains() -> None:
    site = GainSite(path="fc", inputs=6, outputs=4, has_binary_inputs=False)
    with pytest.raises(UsageError, match=r"gain: gain 'k-map' restores the size of a binary input"):
        build_gain(Named(name="k-map"), site, where="gain")
    for name in ("static-map", "squeeze-gate"):
        assert isinstance(build_gain(Named(name=name), site, where="gain"), GAINS[name])
