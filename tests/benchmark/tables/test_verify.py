"""Ours beside the paper's numbers, literally: what a few records give is written out below."""

# A row of a table is one line, however long.
# ruff: noqa: E501

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import builders
import pytest
from builders import ROOT

import bdbench.cells.cell
from bdbench.attacks.registry import attacks
from bdbench.cli import main
from bdbench.defenses.registry import defenses
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.training.recipe import Recipe
from bdbench.records import files as records
from bdbench.records.count import Count
from bdbench.tables.verify import ANY, ASR, CA, RACC, REASONS, verify, write_verification


def cell(defense, attack, *numbers, dataset="cifar10", epochs=100, **more):
    """A record as `builders.make_record` makes it, of a cell with real specs."""
    record = builders.make_record(defense, attack, *numbers, **more)
    recipe, seed = Recipe(epochs=epochs), record.cell["seed"]
    own = bdbench.cells.cell.cell(dataset, "wrn16_1", attack, defense, recipe, seed)
    return replace(record, key=own.key, cell=own.identity, labels=own.labels)


RECORDS = [
    cell("none", "none", 891, floor=8),
    cell("cbd", "none", 880, floor=20),
    *(cell("none", "badnets", 852 + s, 1000, 10, s) for s in range(3)),
    *(cell("cbd(t1=8)", "badnets", 860 + s, 9 + s, 10, s) for s in range(2)),
    cell("cbd(t1=8)", "badnets", seed=2),
    cell("cbd(t1=8)", "badnets", 100, 0, 0, 3, flags=("not_finite",)),
    cell("fp", "badnets", 100, 0, 0, flags=("not_finite",)),
    cell("nad", "badnets"),
    cell("ft", "badnets", 850, 100),
    cell("none", "badnets(poisoning_rate=0.01)", 857, 999),
    cell("none", "adaptive(attack='trojan')", 850, 990),
    cell("none", "sig", 841, 100, epochs=30, flags=("attack_failed",)),
]

MARKDOWN = """\
## cifar10 · wrn16_1 · default recipe

| attack                       | defense   | metric | seeds |   ours |    95 % interval |  paper | table | difference | verdict    | BackdoorBench | FT-SAM | reasons   |
|:-----------------------------|:----------|:-------|------:|-------:|-----------------:|-------:|------:|-----------:|:-----------|--------------:|-------:|:----------|
| none                         | none      | CA     |     1 |  89.10 |   87.02 to 90.88 |  89.14 |     1 |      -0.04 | inside     |             - |      - |           |
| none                         | none      | floor  |     1 |   0.80 |     0.41 to 1.57 |   0.00 |     1 |      +0.80 | -          |             - |      - | 1         |
| none                         | cbd       | CA     |     1 |  88.00 |   85.84 to 89.87 |  88.95 |     1 |      -0.95 | inside     |             - |      - | 2         |
| none                         | cbd       | floor  |     1 |   2.00 |     1.30 to 3.07 |   0.00 |     1 |      +2.00 | -          |             - |      - | 1 2       |
| adaptive(attack='trojan')    | none      | CA     |     1 |  85.00 |   82.65 to 87.08 |      - |     5 |          - | -          |             - |      - | 3 4 5     |
| adaptive(attack='trojan')    | none      | ASR    |     1 |  99.00 |   98.17 to 99.46 |      - |     5 |          - | -          |             - |      - | 3 4 5     |
| badnets                      | none      | CA     |     3 |  85.30 |   85.05 to 85.55 |  85.37 |     1 |      -0.07 | inside     |         91.32 |  91.82 | 6         |
| badnets                      | none      | ASR    |     3 | 100.00 | 100.00 to 100.00 | 100.00 |     1 |      +0.00 | inside     |         95.03 |  93.79 | 6         |
| badnets                      | none      | R-Acc  |     3 |   0.00 |     0.00 to 0.00 |      - |     - |          - | -          |          4.67 |      - |           |
| badnets                      | cbd(t1=8) | CA     |     2 |  86.05 |   85.41 to 86.69 |  87.46 |     1 |      -1.41 | outside    |             - |      - | 2 6 7 8 9 |
| badnets                      | cbd(t1=8) | ASR    |     2 |   0.95 |     0.31 to 1.59 |   1.06 |     1 |      -0.11 | inside     |             - |      - | 2 6 7 8 9 |
| badnets                      | fp        | CA     |     0 |      - |                - |  82.41 |     1 |          - | not finite |         91.31 |  91.77 | 6 10 11   |
| badnets                      | fp        | ASR    |     0 |      - |                - |  99.96 |     1 |          - | not finite |         57.13 |   0.84 | 6 10 11   |
| badnets                      | fp        | R-Acc  |     0 |      - |                - |      - |     - |          - | not finite |         41.62 |      - | 11        |
| badnets                      | ft        | CA     |     1 |  85.00 |   82.65 to 87.08 |      - |     - |          - | -          |         89.96 |  90.29 |           |
| badnets                      | ft        | ASR    |     1 |  10.00 |    8.29 to 12.02 |      - |     - |          - | -          |          1.48 |   1.70 |           |
| badnets                      | ft        | R-Acc  |     1 |  45.00 |   41.94 to 48.10 |      - |     - |          - | -          |         89.39 |      - |           |
| badnets                      | nad       | CA     |     0 |      - |                - |  82.25 |     1 |          - | failed     |         89.87 |  88.82 | 6 12 13   |
| badnets                      | nad       | ASR    |     0 |      - |                - |   3.07 |     1 |          - | failed     |          2.14 |   1.96 | 6 12 13   |
| badnets                      | nad       | R-Acc  |     0 |      - |                - |      - |     - |          - | failed     |         88.71 |      - | 13        |
| badnets(poisoning_rate=0.01) | none      | CA     |     1 |  85.70 |   83.39 to 87.73 |  85.67 |     2 |      +0.03 | inside     |         93.14 |      - | 6         |
| badnets(poisoning_rate=0.01) | none      | ASR    |     1 |  99.90 |   99.44 to 99.98 | 100.00 |     2 |      -0.10 | outside    |         74.73 |      - | 6         |
| badnets(poisoning_rate=0.01) | none      | R-Acc  |     1 |   0.00 |     0.00 to 0.38 |      - |     - |          - | -          |         24.24 |      - |           |

All rows of the paper's tables:

- the paper gives no batch size, learning rate drops or size of cutout

1. published as 0, ours is the floor: ordinary error, not compared
2. cbd by default has T1 and beta fixed, which the paper searches, and two constants of its authors' code
3. illegible in the copies of Table 5 at hand
4. the paper gives no patch, ours by default adds seeded colours
5. noise is made after every epoch, in the paper after every batch
6. the paper gives no patch, ours is a black and white corner pattern
7. cbd: t1=8 instead of 5
8. failed, in no mean: seed 2 (RuntimeError)
9. not_finite, in no mean: seed 3
10. fp prunes the embedding, the paper only says original settings
11. not_finite, in no mean: seed 0
12. nad has 320 and 640 updates by default, the paper only says original settings
13. failed, in no mean: seed 0 (RuntimeError)

Published numbers that are more than ten points apart:

- fp on badnets, ASR: the CBD paper 99.96, BackdoorBench 57.13, FT-SAM 0.84
- none on badnets(poisoning_rate=0.01), ASR: the CBD paper 100, BackdoorBench 74.73

## cifar10 · wrn16_1 · recipe(epochs=30)

| attack | defense | metric | seeds |  ours |  95 % interval | paper | table | difference | verdict | BackdoorBench | FT-SAM | reasons |
|:-------|:--------|:-------|------:|------:|---------------:|------:|------:|-----------:|:--------|--------------:|-------:|:--------|
| sig    | none    | CA     |     1 | 84.10 | 81.70 to 86.24 | 84.14 |     1 |      -0.04 | inside  |         93.82 |      - |         |
| sig    | none    | ASR    |     1 | 10.00 |  8.29 to 12.02 | 99.32 |     1 |     -89.32 | outside |         83.40 |      - |         |
| sig    | none    | R-Acc  |     1 | 45.00 | 41.94 to 48.10 |     - |     - |          - | -       |         14.29 |      - |         |

All rows of the paper's tables:

- epochs 30 instead of 100
- the paper gives no batch size, learning rate drops or size of cutout
- the paper says neither SIG's amplitude nor what its 10 % is a share of
- attack_failed, the trigger seldom works even with no defense: seed 0

All in percent, after the last epoch. Ours: mean over seeds with its 95 % interval, Wilson's of one seed, which leaves out how seeds differ, or t of several. Paper: the printed value; inside: it lies in our interval, give or take its own rounding. Settings of attacks and defenses are compared with our defaults, as the paper prints few of them. BackdoorBench and FT-SAM: numbers of others for the same attack, poisoning rate and data set. They are of another network, so they get no verdict. BackdoorBench: its leaderboard as of 2025-06-04, PreAct-ResNet18. FT-SAM: Zhu et al., ICCV 2023, arXiv:2304.11823, Table 1, PreAct-ResNet18.

Inside our interval: 3 of 6 cells, 7 of 10 values. The paper's cells without a record: 126 of 133 in Table 1, 31 of 32 in Table 2, 7 of 8 in Table 5. Our cells that are not in the paper: 1.
"""

CSV = """\
table,dataset,model,recipe,attack,defense,metric,seeds,ours,low,high,published,difference,verdict,backdoorbench,ft_sam,contradiction,reasons
1,cifar10,wrn16_1,recipe,none,none,CA,1,89.1,87.0168,90.884,89.14,-0.04,inside,,,,"the paper gives no batch size, learning rate drops or size of cutout"
1,cifar10,wrn16_1,recipe,none,none,floor,1,0.8,0.4059,1.5706,0,0.8,,,,,"the paper gives no batch size, learning rate drops or size of cutout; published as 0, ours is the floor: ordinary error, not compared"
1,cifar10,wrn16_1,recipe,none,cbd,CA,1,88,85.8391,89.8701,88.95,-0.95,inside,,,,"the paper gives no batch size, learning rate drops or size of cutout; cbd by default has T1 and beta fixed, which the paper searches, and two constants of its authors' code"
1,cifar10,wrn16_1,recipe,none,cbd,floor,1,2,1.2984,3.069,0,2,,,,,"the paper gives no batch size, learning rate drops or size of cutout; published as 0, ours is the floor: ordinary error, not compared; cbd by default has T1 and beta fixed, which the paper searches, and two constants of its authors' code"
5,cifar10,wrn16_1,recipe,adaptive(attack='trojan'),none,CA,1,85,82.6531,87.079,,,,,,,"illegible in the copies of Table 5 at hand; the paper gives no batch size, learning rate drops or size of cutout; the paper gives no patch, ours by default adds seeded colours; noise is made after every epoch, in the paper after every batch"
5,cifar10,wrn16_1,recipe,adaptive(attack='trojan'),none,ASR,1,99,98.1691,99.4559,,,,,,,"illegible in the copies of Table 5 at hand; the paper gives no batch size, learning rate drops or size of cutout; the paper gives no patch, ours by default adds seeded colours; noise is made after every epoch, in the paper after every batch"
1,cifar10,wrn16_1,recipe,badnets,none,CA,3,85.3,85.0516,85.5484,85.37,-0.07,inside,91.32,91.82,,"the paper gives no batch size, learning rate drops or size of cutout; the paper gives no patch, ours is a black and white corner pattern"
1,cifar10,wrn16_1,recipe,badnets,none,ASR,3,100,100,100,100,0,inside,95.03,93.79,,"the paper gives no batch size, learning rate drops or size of cutout; the paper gives no patch, ours is a black and white corner pattern"
,cifar10,wrn16_1,recipe,badnets,none,R-Acc,3,0,0,0,,,,4.67,,,
1,cifar10,wrn16_1,recipe,badnets,cbd(t1=8),CA,2,86.05,85.4147,86.6853,87.46,-1.41,outside,,,,"cbd: t1=8 instead of 5; the paper gives no batch size, learning rate drops or size of cutout; the paper gives no patch, ours is a black and white corner pattern; cbd by default has T1 and beta fixed, which the paper searches, and two constants of its authors' code; failed, in no mean: seed 2 (RuntimeError); not_finite, in no mean: seed 3"
1,cifar10,wrn16_1,recipe,badnets,cbd(t1=8),ASR,2,0.95,0.3147,1.5853,1.06,-0.11,inside,,,,"cbd: t1=8 instead of 5; the paper gives no batch size, learning rate drops or size of cutout; the paper gives no patch, ours is a black and white corner pattern; cbd by default has T1 and beta fixed, which the paper searches, and two constants of its authors' code; failed, in no mean: seed 2 (RuntimeError); not_finite, in no mean: seed 3"
1,cifar10,wrn16_1,recipe,badnets,fp,CA,0,,,,82.41,,not finite,91.31,91.77,,"the paper gives no batch size, learning rate drops or size of cutout; the paper gives no patch, ours is a black and white corner pattern; fp prunes the embedding, the paper only says original settings; not_finite, in no mean: seed 0"
1,cifar10,wrn16_1,recipe,badnets,fp,ASR,0,,,,99.96,,not finite,57.13,0.84,"the CBD paper 99.96, BackdoorBench 57.13, FT-SAM 0.84","the paper gives no batch size, learning rate drops or size of cutout; the paper gives no patch, ours is a black and white corner pattern; fp prunes the embedding, the paper only says original settings; not_finite, in no mean: seed 0"
,cifar10,wrn16_1,recipe,badnets,fp,R-Acc,0,,,,,,not finite,41.62,,,"not_finite, in no mean: seed 0"
,cifar10,wrn16_1,recipe,badnets,ft,CA,1,85,82.6531,87.079,,,,89.96,90.29,,
,cifar10,wrn16_1,recipe,badnets,ft,ASR,1,10,8.2909,12.0152,,,,1.48,1.7,,
,cifar10,wrn16_1,recipe,badnets,ft,R-Acc,1,45,41.9415,48.0967,,,,89.39,,,
1,cifar10,wrn16_1,recipe,badnets,nad,CA,0,,,,82.25,,failed,89.87,88.82,,"the paper gives no batch size, learning rate drops or size of cutout; the paper gives no patch, ours is a black and white corner pattern; nad has 320 and 640 updates by default, the paper only says original settings; failed, in no mean: seed 0 (RuntimeError)"
1,cifar10,wrn16_1,recipe,badnets,nad,ASR,0,,,,3.07,,failed,2.14,1.96,,"the paper gives no batch size, learning rate drops or size of cutout; the paper gives no patch, ours is a black and white corner pattern; nad has 320 and 640 updates by default, the paper only says original settings; failed, in no mean: seed 0 (RuntimeError)"
,cifar10,wrn16_1,recipe,badnets,nad,R-Acc,0,,,,,,failed,88.71,,,"failed, in no mean: seed 0 (RuntimeError)"
2,cifar10,wrn16_1,recipe,badnets(poisoning_rate=0.01),none,CA,1,85.7,83.3935,87.7333,85.67,0.03,inside,93.14,,,"the paper gives no batch size, learning rate drops or size of cutout; the paper gives no patch, ours is a black and white corner pattern"
2,cifar10,wrn16_1,recipe,badnets(poisoning_rate=0.01),none,ASR,1,99.9,99.4357,99.9823,100,-0.1,outside,74.73,,"the CBD paper 100, BackdoorBench 74.73","the paper gives no batch size, learning rate drops or size of cutout; the paper gives no patch, ours is a black and white corner pattern"
,cifar10,wrn16_1,recipe,badnets(poisoning_rate=0.01),none,R-Acc,1,0,0,0.3827,,,,24.24,,,
1,cifar10,wrn16_1,recipe(epochs=30),sig,none,CA,1,84.1,81.7036,86.2354,84.14,-0.04,inside,93.82,,,"epochs 30 instead of 100; the paper gives no batch size, learning rate drops or size of cutout; the paper says neither SIG's amplitude nor what its 10 % is a share of; attack_failed, the trigger seldom works even with no defense: seed 0"
1,cifar10,wrn16_1,recipe(epochs=30),sig,none,ASR,1,10,8.2909,12.0152,99.32,-89.32,outside,83.4,,,"epochs 30 instead of 100; the paper gives no batch size, learning rate drops or size of cutout; the paper says neither SIG's amplitude nor what its 10 % is a share of; attack_failed, the trigger seldom works even with no defense: seed 0"
,cifar10,wrn16_1,recipe(epochs=30),sig,none,R-Acc,1,45,41.9415,48.0967,,,,14.29,,,"attack_failed, the trigger seldom works even with no defense: seed 0"
"""

JSON = """\
{
 "rows": [
  {
   "table": 1,
   "dataset": "cifar10",
   "model": "wrn16_1",
   "recipe": "recipe",
   "attack": "none",
   "defense": "none",
   "metric": "CA",
   "seeds": 1,
   "ours": 89.1,
   "low": 87.0168,
   "high": 90.884,
   "published": 89.14,
   "difference": -0.04,
   "verdict": "inside",
   "backdoorbench": null,
   "ft_sam": null,
   "contradiction": "",
   "reasons": [
    "the paper gives no batch size, learning rate drops or size of cutout"
   ]
  },
  {
   "table": 1,
   "dataset": "cifar10",
   "model": "wrn16_1",
   "recipe": "recipe",
   "attack": "none",
   "defense": "none",
   "metric": "floor",
   "seeds": 1,
   "ours": 0.8,
   "low": 0.4059,
   "high": 1.5706,
   "published": 0.0,
   "difference": 0.8,
   "verdict": "",
   "backdoorbench": null,
   "ft_sam": null,
   "contradiction": "",
   "reasons": [
    "the paper gives no batch size, learning rate drops or size of cutout",
    "published as 0, ours is the floor: ordinary error, not compared"
   ]
  },
  {
   "table": 1,
   "dataset": "cifar10",
   "model": "wrn16_1",
   "recipe": "recipe",
   "attack": "badnets",
   "defense": "nad",
   "metric": "CA",
   "seeds": 0,
   "ours": null,
   "low": null,
   "high": null,
   "published": 82.25,
   "difference": null,
   "verdict": "failed",
   "backdoorbench": 89.87,
   "ft_sam": 88.82,
   "contradiction": "",
   "reasons": [
    "the paper gives no batch size, learning rate drops or size of cutout",
    "the paper gives no patch, ours is a black and white corner pattern",
    "nad has 320 and 640 updates by default, the paper only says original settings",
    "failed, in no mean: seed 0 (RuntimeError)"
   ]
  },
  {
   "table": 1,
   "dataset": "cifar10",
   "model": "wrn16_1",
   "recipe": "recipe",
   "attack": "badnets",
   "defense": "nad",
   "metric": "ASR",
   "seeds": 0,
   "ours": null,
   "low": null,
   "high": null,
   "published": 3.07,
   "difference": null,
   "verdict": "failed",
   "backdoorbench": 2.14,
   "ft_sam": 1.96,
   "contradiction": "",
   "reasons": [
    "the paper gives no batch size, learning rate drops or size of cutout",
    "the paper gives no patch, ours is a black and white corner pattern",
    "nad has 320 and 640 updates by default, the paper only says original settings",
    "failed, in no mean: seed 0 (RuntimeError)"
   ]
  },
  {
   "table": null,
   "dataset": "cifar10",
   "model": "wrn16_1",
   "recipe": "recipe",
   "attack": "badnets",
   "defense": "nad",
   "metric": "R-Acc",
   "seeds": 0,
   "ours": null,
   "low": null,
   "high": null,
   "published": null,
   "difference": null,
   "verdict": "failed",
   "backdoorbench": 88.71,
   "ft_sam": null,
   "contradiction": "",
   "reasons": [
    "failed, in no mean: seed 0 (RuntimeError)"
   ]
  }
 ],
 "summary": {
  "cells": 1,
  "cells_inside": 1,
  "values": 1,
  "values_inside": 1,
  "without_record": {
   "1": 131,
   "2": 32,
   "5": 8
  },
  "not_in_the_paper": 0
 }
}
"""


def row(record, metric, *others):
    """Of the first cell."""
    return verify([record, *others]).rows[(CA, ASR, RACC).index(metric)]


def test_the_table_is_this():
    shuffled = random.Random(0).sample(RECORDS, len(RECORDS))
    found = verify(shuffled)
    assert found.markdown() == MARKDOWN
    assert found.csv() == CSV


def test_the_json_is_this():
    failed = next(r for r in RECORDS if r.labels["defense"] == "nad")
    assert verify([failed, RECORDS[0]]).json() == JSON


@pytest.mark.parametrize(
    ("hits", "verdict"),
    [(85374, "inside"), (85376, "outside"), (85366, "inside"), (85364, "outside")],
)
def test_a_printed_number_stands_for_all_that_round_to_it(hits, verdict):
    """85.37 is printed; two equal seeds have an interval without width."""
    same = [cell("none", "badnets", 850, 1000, 10, seed) for seed in range(2)]
    same = [replace(r, metrics=r.metrics | {CA: Count(hits, 100_000)}) for r in same]
    found = row(same[0], CA, same[1])
    assert (found.low, found.high) == (hits / 1000, hits / 1000)
    assert found.verdict == verdict


def test_no_attack_has_a_floor_that_is_not_compared():
    record = cell("none", "none", 891, floor=0)
    found = row(record, ASR)
    assert (found.metric, found.ours, found.published, found.verdict) == ("floor", 0, 0, "")
    assert "published as 0, ours is the floor: ordinary error, not compared" in found.reasons
    assert row(record, CA).reasons == (REASONS[ANY, ANY, ANY],)
    assert verify([record]).summary() == {
        "cells": 1,
        "cells_inside": 1,
        "values": 1,
        "values_inside": 1,
        "without_record": {"1": 132, "2": 32, "5": 8},
        "not_in_the_paper": 0,
    }


def test_a_cell_is_inside_if_both_of_its_values_are():
    summary = verify([cell("none", "badnets", 854, 900)]).summary()
    assert [summary[name] for name in ("cells", "cells_inside")] == [1, 0]
    assert [summary[name] for name in ("values", "values_inside")] == [2, 1]


def test_cells_of_one_printed_row_are_compared_each_and_counted_once():
    half = cell("none", "sig(poisoning_rate=0.5)", 850, 980)
    found = verify([half, cell("none", "sig", 850, 900)])
    # Others have SIG at 1 and at 5 % of all images, a tenth and half of the class.
    assert [row.attack for row in found.rows] == [*3 * ["sig"], *3 * ["sig(poisoning_rate=0.5)"]]
    assert found.missing[1] == 132
    assert "poisoning_rate 0.5 instead of 0.1" in row(half, ASR).reasons


def test_notes_on_the_number_and_on_the_data_are_reasons():
    attack = "wanet(target=1)"
    record = cell("cbd", attack, 956, 31, dataset="gtsrb(train_images=5000)")
    small = replace(record, provenance=record.provenance | {"data_notes": ["26,640 images"]})
    reasons = row(small, ASR).reasons
    assert reasons[0] == "5,000 of 39,209 images"
    assert {"26,640 images", "section 5.2 prints ASR 3.41 instead of 3.13"} <= set(reasons)


def test_a_reason_of_one_metric_is_not_given_for_the_other():
    record = cell("none", "wanet", 860, 990)
    assert REASONS["none", "wanet", ASR] in row(record, ASR).reasons
    assert REASONS["none", "wanet", ASR] not in row(record, CA).reasons


def test_other_numbers_stand_beside_ours_and_contradict_each_other():
    """FP on Blend at 10 %: 99.3 in BackdoorBench's leaderboard, 8.3 in the FT-SAM paper."""
    fp = cell("fp", "blend", 850, 900)
    found = row(fp, ASR)
    assert (found.published, found.backdoorbench, found.ft_sam) == (87.14, 99.26, 8.32)
    assert found.contradiction == "the CBD paper 87.14, BackdoorBench 99.26, FT-SAM 8.32"
    assert found.verdict == "outside"
    assert row(fp, CA).contradiction == "the CBD paper 81.57, BackdoorBench 93.17, FT-SAM 92.57"
    robust = row(fp, RACC)
    assert (robust.metric, robust.table, robust.backdoorbench) == ("R-Acc", None, 0.73)
    text = verify([fp]).markdown()
    assert "\n- fp on blend, ASR: the CBD paper 87.14, BackdoorBench 99.26, FT-SAM 8.32\n" in text


def test_a_cell_that_only_others_have_gets_no_verdict():
    found = verify([cell("ft", "blend", 850, 900)])
    assert [(row.metric, row.table, row.verdict) for row in found.rows] == [
        ("CA", None, ""),
        ("ASR", None, ""),
        ("R-Acc", None, ""),
    ]
    assert found.beyond == 1
    assert found.summary()["values"] == 0
    assert "All rows" not in found.markdown()
    assert json.loads(found.json())["rows"][1]["backdoorbench"] == found.rows[1].backdoorbench


def test_the_paper_contradicts_nobody_at_another_rate_or_of_an_unknown_share():
    assert row(cell("none", "badnets(poisoning_rate=0.01)", 850, 990), ASR).contradiction
    assert row(cell("abl", "badnets(poisoning_rate=0.01)", 850, 990), ASR).published == 3.13
    assert "CBD" not in row(cell("abl", "badnets(poisoning_rate=0.01)", 850, 990), ASR).contradiction  # fmt: skip
    assert row(cell("none", "sig", 850, 990), ASR).contradiction == ""


def test_reasons_are_of_things_that_exist():
    for defense, attack, metric in REASONS:
        assert defense in {ANY, *defenses.names()}
        assert attack in {ANY, *attacks.names()}
        assert metric in {ANY, CA, ASR}


def test_a_bar_in_a_name_does_not_split_a_column():
    record = cell("cbd", "badnets", 860, 10)
    barred = replace(record, labels=record.labels | {"defense": "cbd(name='a|b')"})
    assert "| cbd(name='a\\|b') |" in verify([barred]).markdown()


def test_what_the_paper_does_not_have_leaves_the_sentence_alone():
    found = verify([cell("cbd", "badnets", 860, 10, dataset="toy")])
    assert found.markdown() == (
        "Inside our interval: 0 of 0 cells, 0 of 0 values. The paper's cells without a record: "
        "133 of 133 in Table 1, 32 of 32 in Table 2, 8 of 8 in Table 5. Our cells that are not in "
        "the paper: 1.\n"
    )
    assert found.csv() == CSV.splitlines(keepends=True)[0]


def test_files_are_written_and_written_alike(tmp_path):
    for _ in range(2):
        write_verification(RECORDS, tmp_path)
        files = {path.name: path.read_text() for path in (tmp_path / "tables").iterdir()}
        assert files == {"verify.md": MARKDOWN, "verify.csv": CSV}


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"no records in .*; `bdbench run` makes them"):
        write_verification([], tmp_path)
    other = cell("cbd", "badnets", 860, 10, seed=9)
    mixed = replace(other, provenance={"data_sha256": "cd" * 32})
    with pytest.raises(InvalidInput, match="trained on different data"):
        verify([*RECORDS, mixed])
    (tmp_path / "tables").write_text("in the way")
    with pytest.raises(InvalidInput, match=r"cannot write verify\.md"):
        write_verification(RECORDS, tmp_path)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """The default folder with all records."""
    monkeypatch.chdir(tmp_path)
    folder = Path("results/table1-cifar10")
    for record in RECORDS:
        records.write(folder, record)
    return folder


def test_the_command_prints_markdown_or_json(results, capsys):
    assert main(["verify"]) == 0
    assert capsys.readouterr().out == MARKDOWN + "\n"
    assert (results / "tables/verify.md").read_text() == MARKDOWN
    assert main(["verify", "--results", str(results), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(verify(RECORDS).json())


def test_the_command_names_a_damaged_record_and_leaves_it_out(results, capsys):
    failed = next(r for r in RECORDS if r.labels["defense"] == "nad")
    (results / "records" / f"{failed.key}.json").write_text("{")
    assert main(["verify", "--json"]) == 1
    streams = capsys.readouterr()
    assert streams.err.startswith("bdbench: damaged record results/table1-cifar10/records/")
    assert len(streams.err.splitlines()) == 1
    assert failed.key in streams.err
    assert "failed" not in {row["verdict"] for row in json.loads(streams.out)["rows"]}


def test_the_command_refuses_in_one_line(results, capsys):
    assert main(["verify", "--results", "elsewhere"]) == 2
    records.write(results, replace(RECORDS[0], key="f" * 16))
    assert main(["verify"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("bdbench: no records in elsewhere/records")
    assert "are both of none on none with seed 0" in errors[1]
    assert len(errors) == 2


@pytest.mark.parametrize("module", ["bdbench.tables.published", "bdbench.tables.verify"])
def test_no_torch_is_needed(module, results):
    program = f"""
import sys
import {module}
from bdbench.cli import main
assert "torch" not in sys.modules
code = main(["verify", "--results", {str(results.absolute())!r}])
sys.exit(code or "torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, stdout=subprocess.PIPE)


def test_flags_of_older_and_later_versions_are_said():
    made = [
        cell("none", "badnets", 850, 1000),
        cell("fp", "badnets", 100, 0, flags=("diverged",)),
        cell("nad", "badnets", 820, 30, flags=("as_yet_unknown",)),
    ]
    rows = {(row["defense"], row["metric"]): row for row in json.loads(verify(made).json())["rows"]}
    assert rows["fp", "ASR"]["verdict"] == "diverged"
    assert rows["nad", "ASR"]["verdict"] == "inside"
    assert any(
        reason == "as_yet_unknown, a flag that this version does not know: seed 0"
        for reason in rows["nad", "ASR"]["reasons"]
    )
