"""Benches keep ratios and name no machine, and two files of them are compared by these."""

import json
from pathlib import Path

import pytest
from overhead import conftest
from overhead.compare import main


def test_ratios_are_kept_and_a_worse_one_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def written(name: str, **ratios: list[float]) -> Path:
        bench = {"name": "b", "stats": {}, "extra_info": {"ratios": ratios, "sizes": {}}}
        document = {"machine_info": {"node": "secret"}, "benchmarks": [bench]}
        conftest.pytest_benchmark_update_json(document)
        assert document.keys() == {"threads", "torch", "benchmarks"}
        (tmp_path / name).write_text(json.dumps(document))
        return tmp_path / name

    then = written("then", step=[0.7, 1.0, 1.6], old=[2.0])
    assert main(written("now", step=[0.71, 0.4, 0.5], new=[3.0]), then) == 0
    assert "perhaps worse: step is 0.50 and was 1.00" in capsys.readouterr().out
    assert main(written("now", step=[0.69, 0.4, 0.5]), then) == 1
    assert capsys.readouterr().out.endswith("\nworse: step is 0.50 and was 1.00\n")
