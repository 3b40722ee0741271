import pytest
import torch

from attn_course import _triton


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu"):
            reason = "needs a CUDA device"
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason=reason))
        if item.get_closest_marker("triton"):
            reason = f"kernels cannot run here: {_triton.REASON}"
            item.add_marker(pytest.mark.skipif(not _triton.AVAILABLE, reason=reason))
