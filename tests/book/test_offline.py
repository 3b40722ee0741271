from tools import offline


def test_every_bundled_package_brings_its_licence() -> None:
    names = {name for name, _ in offline.licences()}
    assert {f"{package}/about.txt" for package in offline.BUNDLED} <= names
    texts = {name.split("/")[0] for name in names if not name.endswith("about.txt")}
    assert set(offline.BUNDLED) - texts <= {"sphinx-mathjax-offline"}


def test_mathjax_brings_the_text_of_its_licence() -> None:
    texts = dict(offline.mathjax())
    assert b"Apache License" in texts["MathJax/LICENSE"]


def test_the_zip_holds_the_course() -> None:
    names = {name for _, name in offline.members()}
    assert {"LICENSE", "LICENSE-TEXT.md", "ATTRIBUTION.md"} <= names
    assert {"attn_course/__init__.py", "notebooks/01_kernel_regression.ipynb"} <= names
    assert not any("__pycache__" in name for name in names)
