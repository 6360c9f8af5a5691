from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from monai.networks.nets import resnet18

from benchmarks import cam as cam_benchmark
from benchmarks.cam import benchmark_cam, import_grad_cam, methods, works_frozen
from common.cam import GradCAM, LayerCAM
from tests.running import REPOSITORY, run_module

ON_LINUX = Path("/proc/self/clear_refs").exists()


MEASURE = """
import torch
from benchmarks.cam import peak_memory

kept = torch.ones(20_000_000)

def run():
    torch.ones(10_000_000)  # 40 MB, dropped
    torch.ones(4_000_000)

print(peak_memory(run), peak_memory(run), peak_memory(lambda: None), float(kept[0]))
"""


@pytest.mark.skipif(not ON_LINUX, reason="peak memory is read from /proc, which only Linux has")
def test_peak_memory_sees_what_is_freed_again_and_not_what_was_there_before(tmp_path):
    """In a process of its own, as the command has: what other tests leave behind blurs the figure."""
    (tmp_path / "measure.py").write_text(MEASURE)
    done = run_module("measure", cwd=tmp_path, environment={"PYTHONPATH": str(REPOSITORY)})
    first, second, nothing, _ = map(float, done.stdout.split())
    assert first == pytest.approx(40e6, rel=0.1)
    assert second == pytest.approx(40e6, rel=0.1)
    assert nothing < 4e6


def test_table_holds_each_method_beside_the_forward_in_both_formats(capsys, monkeypatch):
    monkeypatch.setattr(cam_benchmark, "methods", lambda peers: methods(False))
    monkeypatch.setattr(cam_benchmark, "resnet18", partial(resnet18, widen_factor=0.125))
    changes: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", changes.append)
    rows = benchmark_cam(slices=1, size=32, repeats=1, stem_stride=2, threads=3)
    assert changes == [3, 7]  # set and given back
    keys = [(row["method"], row["layer"], row["format"]) for row in rows]
    per_format = [("forward", ""), ("common", "layer4"), ("common", "layer1")]
    assert keys == [(*key, form) for form in ("contiguous", "channels_last") for key in per_format]
    forwards = {row["format"]: row for row in rows if row["method"] == "forward"}
    for row in rows:
        plain = forwards[row["format"]]
        ratio = plain["seconds"] / forwards["contiguous"]["seconds"]
        assert row["cpu_contiguous"] == pytest.approx(row["cpu"] * ratio)
        assert row["cpu"] > 0
        assert row["wall"] > 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 2 + len(rows)
    assert "a plain forward takes" in printed


def test_our_methods_are_the_public_ones_and_work_frozen():
    torch.manual_seed(0)
    network = resnet18(spatial_dims=2, n_input_channels=3, num_classes=2, widen_factor=0.125).eval()
    images = torch.rand(2, 3, 64, 64)
    found = methods(peers=False)
    torch.testing.assert_close(found["common", "layer4"](network)(images), GradCAM(network, "layer4")(images, 1))
    torch.testing.assert_close(found["common", "layer1"](network)(images), LayerCAM(network, "layer1")(images, 1))
    assert [works_frozen(make) for make in found.values()] == ["works", "works"]


def test_the_name_of_the_error_is_reported_when_a_frozen_network_fails():
    def needs_gradients(network):
        return lambda images: network(images).sum().backward()

    assert works_frozen(needs_gradients) == "RuntimeError"


def test_a_peer_that_cannot_be_imported_is_named_and_left_out(capsys, monkeypatch):
    def broken():
        raise RuntimeError("operator torchvision::nms does not exist\nsecond line")

    monkeypatch.setattr(cam_benchmark, "_torchcam", broken)
    found = methods()
    assert not [name for name, _ in found if name == "TorchCAM"]
    assert ("MONAI", "layer4") in found
    expected = "TorchCAM is left out: RuntimeError: operator torchvision::nms does not exist"
    assert expected in capsys.readouterr().out.splitlines()


def test_torchcam_is_asked_for_the_same_map():
    pytest.importorskip("torchcam.methods", reason="TorchCAM (extra dev, Python ≥ 3.11) is not installed")
    torch.manual_seed(0)
    network = resnet18(spatial_dims=2, n_input_channels=3, num_classes=2, widen_factor=0.125).eval()
    images = torch.rand(2, 3, 64, 64)
    found = methods()
    for layer, ours in (("layer4", GradCAM), ("layer1", LayerCAM)):
        (theirs,) = found["TorchCAM", layer](network)(images)
        expected = ours(network, layer)(images, 1)
        assert expected.flatten(1).amax(1).min() > 0
        torch.testing.assert_close(theirs.detach(), expected, rtol=1e-3, atol=1e-6 + 1e-4 * float(expected.max()))


def test_stand_ins_of_torchvision_do_not_outlive_the_import(monkeypatch):
    installed, during = object(), []
    monkeypatch.setitem(sys.modules, "torchvision", installed)
    monkeypatch.delitem(sys.modules, "torchvision.transforms", raising=False)

    def fake_import(name):
        during.append((name, sys.modules["torchvision"], "torchvision.transforms" in sys.modules))
        raise ImportError("no such package")

    monkeypatch.setattr(importlib, "import_module", fake_import)
    with pytest.raises(ImportError, match="no such package"):
        import_grad_cam()
    assert during[0][0] == "pytorch_grad_cam"
    assert during[0][1] is not installed
    assert during[0][2]
    assert sys.modules["torchvision"] is installed
    assert "torchvision.transforms" not in sys.modules
