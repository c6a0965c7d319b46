"""How well the rules of `evaluate/findings.py` read PTB-XL's reports: `python -m benchmarks.findings --root=PTBXL`.

Compares what they find in each report with the record's SCP codes (of a likelihood of 50% or more, or without one) and, for the
axis, with its column. The rules were written on the records of even numbers; the table is of those of odd ones. Codes are a
cardiologist's, who often differs from the report, so that no rule could be right about all of them.
"""

import argparse
import ast
import csv
from pathlib import Path

from ecgbyte_jax.evaluate.findings import findings_in

CODES = {
    "normal ECG": {"NORM"},
    "sinus rhythm": {"SR", "STACH", "SBRAD", "SARRH"},
    "sinus tachycardia": {"STACH"},
    "sinus bradycardia": {"SBRAD"},
    "atrial fibrillation": {"AFIB"},
    "atrial flutter": {"AFLT"},
    "premature ventricular beats": {"PVC"},
    "premature atrial beats": {"PAC"},
    "paced rhythm": {"PACE"},
    "first-degree AV block": {"1AVB"},
    "left bundle branch block": {"CLBBB", "ILBBB"},
    "right bundle branch block": {"CRBBB", "IRBBB"},
    "left anterior fascicular block": {"LAFB"},
    "left ventricular hypertrophy": {"LVH"},
    "right ventricular hypertrophy": {"RVH"},
    "myocardial infarction": {"IMI", "ASMI", "AMI", "ALMI", "ILMI", "LMI", "IPMI", "IPLMI", "PMI"},
    "ischaemia": {"ISC_", "ISCAL", "ISCAS", "ISCIL", "ISCIN", "ISCLA", "ISCAN"},
    "ST depression": {"STD_"},
    "ST elevation": {"STE_"},
    "T wave inversion": {"INVT"},
    "prolonged QT": {"LNGQT"},
    "left axis deviation": {"axis LAD", "axis ALAD"},
    "right axis deviation": {"axis RAD", "axis ARAD"},
    "low voltage": {"LVOLT"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--written", action="store_true", help="the half that the rules were written on")
    parser.add_argument("--wrong", action="store_true", help="also print where rules and codes differ")
    args = parser.parse_args()
    with (args.root / "ptbxl_database.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (int(float(row["ecg_id"])) % 2 == 0) == args.written]
    print("| finding | codes | stated | both | precision | recall | recall, uncertain ones too |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, codes in CODES.items():
        cells = []
        for row in (row for row in rows if row["heart_axis"] or "axis" not in name):
            found = findings_in(row["report"]).get(name)
            coded = {code for code, likelihood in ast.literal_eval(row["scp_codes"]).items() if not 0 < likelihood < 50}
            is_coded = bool(codes & (coded | {f"axis {row['heart_axis']}"}))
            if args.wrong and is_coded != bool(found):
                print(f"  {name}: {found} by the rules, {row['scp_codes']} {row['heart_axis']}: {row['report']}")
            cells.append((is_coded, found))
        truth, stated = sum(coded for coded, _ in cells), sum(found is True for _, found in cells)
        both = sum(coded and found is True for coded, found in cells)
        mentioned = sum(coded and found is not None for coded, found in cells)
        shares = [(both, stated), (both, truth), (mentioned, truth)]
        ratios = (f"{100 * part / whole:.0f}%" if whole else "-" for part, whole in shares)
        print(f"| {name} | {truth} | {stated} | {both} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
