"""Clinical findings in reports, by a list of rules: which ones an answer misses, and which it has beyond its reference.

The rules know the words of PTB-XL's German, English and Swedish reports and of MIMIC-IV-ECG's machine statements. A report's
mention of a finding is one of three:

- denied, where "no", "without", "kein", "ohne", "ingen" or the like is up to four words before it, or before a list that "or"
  or the like leads to it, or "not present", "no longer seen", "unlikely" or the like right after it: as if not mentioned;
- uncertain, where "possible", "may be", "cannot rule out" or the like is up to eight words before it, "wahrscheinlich",
  "fraglich", "överväg" or the like up to four (these reports have no full stops), "verdacht auf" up to one, or "cannot be
  excluded", "möglich", "bör övervägas" or the like up to three words after it;
- stated. "suggesting" and "consistent with" state a finding; "wahrscheinlich alt" is about its age.

Full stops, semicolons, colons, "but", "ej bestämmbar" and P waves, whose absence denies no finding, end what such words reach.
The surest mention counts. An uncertain finding of the reference is neither missed nor extra; one of the answer counts as if
stated.

Axes: N pairs, F findings, P patients, R resamples of them.
"""

import re
from functools import lru_cache

import numpy as np

from ecgbyte_jax.evaluate.intervals import draw, interval

SCORES = ("findings_micro_f1", "findings_macro_f1", "findings_missed", "findings_extra")
FINDINGS = {
    "normal ECG": r"\bnormal(?:es|t)? e[ck]g|e[ck]g normal|within normal limits|no definite pathology|inget säkert patologiskt",
    "sinus rhythm": r"sinus ?(?:rhythm|rytm|tachy[ck]ard|ta[ck]ykard|bra?\w*dy[ck]ard|arr?h?ythm)\w*",
    "sinus tachycardia": r"sinus ?ta(?:chy|ky)[ck]ard\w*",
    "sinus bradycardia": r"sinus ?br\w*dy[ck]ard\w*",
    "atrial fibrillation": r"atrial fibrillation|\ba-?fib\b|vorhofflimmern|förmaksflimmer",
    "atrial flutter": r"atrial flutter|vorhofflattern|förmaksfladder",
    "premature ventricular beats": r"premature ventricular|\bventricular (?:premature|extrasystol|ectop)\w*|\bpvcs?\b|"
    r"\bventrikulär\w*(?:\(\w+\))? extras\w*",
    "premature atrial beats": r"premature (?:atrial|supraventricular)|\bpacs?\b|supraventrikulär\w*(?:\(\w+\))? extras\w*|"
    r"\b(?:supraventricular|atrial) (?:premature|extrasystol|ectop)\w*",
    "paced rhythm": r"pacemaker|\bpaced\b|\bpacing\b|schrittmacher",
    "first-degree AV block": r"(?:1st|first|1)[- ]degree (?:a-?v|atrioventricular)|a-?v[- ]block (?:i\b|1)|"
    r"(?:prolonged|long) pr\b|pr[- ]interval is prolonged|i°? a-?v[- ]block",
    "left bundle branch block": r"left bundle[- ]branch block|\blbbb\b|linksschenkelblock|vänstersidigt skänkelblock",
    "right bundle branch block": r"right bundle[- ]branch block|\brbbb\b|rechtsschenkelblock|högersidigt skänkelblock",
    "left anterior fascicular block": r"left anterior (?:fascicular block|hemiblock)|\blafb\b|linksanteriorer hemiblock|"
    r"vänster främre fascikelblock",
    "left ventricular hypertrophy": r"left ventricular hypertrophy|\blvh\b|linkshypertrophie|linksventrikulär\w* hypertrophie|"
    r"vänster kammark?hypertrofi",
    "right ventricular hypertrophy": r"right ventricular hypertrophy|\brvh\b|rechtshypertrophie|höger kammark?hypertrofi",
    "myocardial infarction": r"infar[ck]t\w*|myokards?chaden|myokardskada|myocardial damage",
    "ischaemia": r"isch?a?emi\w*|isc?hämi\w*",
    "ST depression": r"\bst(?:-t| segments?)?[- ](?:are )?(?:depress\w*|senkung\w*|sänkning\w*)|depressed st\b",
    "ST elevation": r"\bst(?:-t| segments?)?[- ](?:are )?(?:elevat\w*|hebung\w*|höjning\w*)",
    "T wave inversion": r"t[- ]waves? (?:is |are )?(?:low or flat in \S+ and )?invert\w*|t[- ]wave inversion|inverted t\b|"
    r"t[- ]negativ\w*",
    "prolonged QT": r"(?:prolonged|long) qt|qt[- ](?:prolong\w*|verlängerung|förlängd)|qt interval is prolonged",
    "left axis deviation": r"left axis deviation|\blinkstyp|vänster el-axel",
    "right axis deviation": r"right axis deviation|\brechtstyp|höger el-axel",
    "low voltage": r"low (?:\w+ ){0,3}voltages?|niederspannung|låga qrs",
}
_RULES = {name: re.compile(pattern) for name, pattern in FINDINGS.items()}
_ENDS = re.compile(
    r"(?<!krit)[.;:](?=\s|$)|\b(?:but|aber|men|ej bestämmbar|p[- ]?(?:waves?|wellen?|våg\w*)(?: (?:is|are|funna|funnen))?)\b"
)
_WORDS = r"(?:\W+[\w'/-]+)"
_DENIED = re.compile(
    rf"\b(?:no|not|without|absence of|negative for|neither|kein\w*|ohne|weder|ingen|inget|inga|utan|ej|varken){_WORDS}{{0,4}}"
    rf"(?:(?:,{_WORDS}{{1,4}})*,?\W+(?:or|nor|oder|noch|eller){_WORDS}{{0,3}})*\W*$"
)
_DENIED_AFTER = re.compile(
    r"\W+(?:(?:is |are )?(?:not|no longer) (?:present|seen|evident)|(?:is |are )?(?:absent|unlikely)|nicht nachweisbar|"
    r"ausgeschlossen|unwahrscheinlich|osannolik\w*)\b"
)
_UNCERTAIN = re.compile(
    r"\b(?:possibl[ey]|probabl[ey]|suspect\w*|consider|may be|might be|could be|commonly due to|questionable|rule out|exclude)"
    r"(?:\W+[\w'/-]+){0,8}\W*$"
    r"|\b(?:fraglich\w*|möglich\w*|eventuell\w*|(?:wahrscheinlich\w*|vermutlich\w*|sannolikt)(?! alt| älter| äldre)|överväg|"
    r"misstänkt\w*|såsom vid|amplitud\w*krit\w*)(?:\W+[\w'/-]+){0,4}\W*$"
    r"|\bverdacht auf(?: \w+)?\W*$"
)
_UNCERTAIN_AFTER = re.compile(
    r"(?:\W+[\w-]+){0,3}?\W+(?:can(?:not| not|'t) be (?:\w+ )?(?:excluded|ruled out)|is (?:likely|possible|probable)|"
    r"möglich|fraglich|nicht auszuschlie(?:ss|ß)en|bör övervägas|kan ej uteslutas|\?)"
)


@lru_cache(maxsize=100_000)
def findings_in(report: str) -> dict[str, bool]:
    """The findings that a report mentions and does not deny, each with whether it is stated; the others are uncertain."""
    text = re.sub(r"\s+", " ", report.lower())
    found: dict[str, bool] = {}
    for name, rule in _RULES.items():
        for match in rule.finditer(text):
            before = text[: match.start()]
            before = before[max((end.end() for end in _ENDS.finditer(before)), default=0) :]
            after = _ENDS.split(text[match.end() :], maxsplit=1)[0]
            uncertain = _UNCERTAIN.search(before) or _UNCERTAIN_AFTER.match(after)
            if not uncertain and (_DENIED.search(before) or _DENIED_AFTER.match(after)):
                continue
            found[name] = found.get(name, False) or not uncertain
    return found


def count(references: list[str], answers: list[str]) -> np.ndarray:
    """Of each pair the findings that both have, that the answer misses, and that it has beyond these: bool [N, 3, F]."""
    cells = np.zeros((len(references), 3, len(FINDINGS)), bool)
    for row, (reference, answer) in enumerate(zip(references, answers)):
        known, given = findings_in(reference), findings_in(answer)
        for column, name in enumerate(FINDINGS):
            has, says = name in known, name in given
            if known.get(name, True):  # not where it is uncertain
                cells[row, :, column] = has and says, has and not says, says and not has
    return cells


def make_findings(rows: list[dict], fields: dict[str, str], resamples: int, seed: int) -> dict:
    """Micro and macro F1 of the findings, the shares of missed and of extra ones, with intervals over resampled patients.

    rows: of generations, one for each question; fields: the field of each system's answer. The macro F1 is the mean over the
    findings of the references. missed: of the references' findings; extra: of the answers'. by_finding: how many both have, are
    missed, are extra.
    """
    names, groups = np.unique([row["patient"] for row in rows], return_inverse=True)
    references = [row["reference"] for row in rows]
    found: dict = {"reports": len(rows), "scores": {}, "intervals": {}, "by_finding": {}}
    for system, field in fields.items():
        cells = count(references, [row[field] for row in rows])
        by_patient = np.zeros((len(names), 3 * len(FINDINGS)))
        np.add.at(by_patient, groups, cells.reshape(len(rows), -1))
        parts = [_from_cells(drawn @ by_patient) for drawn in draw(len(names), resamples, seed)]
        whole = _from_cells(by_patient.sum(axis=0)[None])
        found["scores"][system] = {name: None if np.isnan(value[0]) else float(value[0]) for name, value in whole.items()}
        samples = {name: np.concatenate([part[name] for part in parts]) for name in SCORES}
        known = {name: values[~np.isnan(values)] for name, values in samples.items()}
        found["intervals"][system] = {name: interval(values) if len(values) else None for name, values in known.items()}
        numbers = cells.sum(axis=0).T.tolist()
        found["by_finding"][system] = {name: counts for name, counts in zip(FINDINGS, numbers) if any(counts)}
    return found


def _from_cells(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Scores float64 [R] of numbers of hits, misses and extra findings, [R, 3 F]."""
    hits, missed, extra = np.moveaxis(sums.reshape(len(sums), 3, -1), 1, 0)
    totals = hits.sum(axis=1), missed.sum(axis=1), extra.sum(axis=1)
    f1 = np.where(hits + missed > 0, np.nan_to_num(_ratio(2 * hits, 2 * hits + missed + extra)), np.nan)
    return {
        "findings_micro_f1": _ratio(2 * totals[0], 2 * totals[0] + totals[1] + totals[2]),
        "findings_macro_f1": _ratio(np.nansum(f1, axis=1), (~np.isnan(f1)).sum(axis=1)),
        "findings_missed": _ratio(totals[1], totals[0] + totals[1]),
        "findings_extra": _ratio(totals[2], totals[0] + totals[2]),
    }


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where nothing is to be divided by."""
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
