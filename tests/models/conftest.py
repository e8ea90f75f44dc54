"""What the tests of the models share."""

import os
from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex

from recipes.models import attention


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: runs a kernel on a GPU")
    if os.environ.get("TESTED_ON") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("TESTED_ON=cuda, but torch finds no GPU here: all its tests would be skipped, and pass")


@pytest.fixture(autouse=True)
def kernels_of_its_own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test on a GPU compiles its kernels itself, whatever ran before: all together are more than torch allows."""
    if request.node.get_closest_marker("cuda"):
        torch._dynamo.reset()
        monkeypatch.setattr(attention, "_compiled_flex_attention", None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of a few kilobytes are computed faster by one thread than handed out to many."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets FlexAttention run on the CPU with gradients: captured by torch.compile, computed by the dense reference."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    compiled = attention.compile_flex_attention(backend="aot_eager")
    monkeypatch.setattr(attention, "_compiled_flex_attention", compiled)
    yield
    torch._dynamo.reset()
