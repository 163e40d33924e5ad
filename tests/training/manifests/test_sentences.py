"""Sentences for labels: the same for the same seed, true to the labels, and never changed by accident."""

from __future__ import annotations

import hashlib

from foundation.lexicon import FINDINGS, NORMAL_PHRASES, OTHER_TERMS
from foundation.prompts import TERMS, prompt_pair
from training.manifests.datasets import phantom_target_names, real_target_names
from training.manifests.sentences import VARIANTS, label_sentences, target_prompts

NAMES = (*FINDINGS, *OTHER_TERMS, "line", "normal", "unheard of")
TARGETS = (*real_target_names(), *phantom_target_names())


def test_the_sentences_a_backbone_was_trained_on_stay_as_they_are() -> None:
    """Change these digests only together with the bundled backbone: its text was drawn by them."""
    drawn, asked = hashlib.sha256(), hashlib.sha256()
    for seed in range(500):
        labels = [NAMES[(seed * 7 + i * i * 3) % len(NAMES)] for i in range(seed % 5)]
        for sentence in label_sentences(labels, seed):
            drawn.update(sentence.encode() + b"\n")
    for target in TARGETS:
        asked.update(repr((target, target_prompts(target))).encode())
    assert (drawn.hexdigest()[:16], asked.hexdigest()[:16]) == ("0029a31dfc1d07f3", "3ff44de3a94d2c87")


def test_a_report_affirms_its_labels_and_denies_only_others() -> None:
    for seed in range(60):
        labels = (FINDINGS[seed % 14], FINDINGS[(seed * 5 + 3) % 14])
        reports = label_sentences(labels, seed)
        assert reports == label_sentences(labels, seed)
        assert len(reports) == VARIANTS
        for report in reports:
            clauses = [clause.strip() for clause in report.split(".") if clause.strip()]
            denied = [clause for clause in clauses if "no " in clause or "without" in clause or "not seen" in clause]
            affirmed = [clause for clause in clauses if clause not in denied]
            assert len(affirmed) == len(labels)
            for name in set(labels):
                assert any(term in clause for term in TERMS[name] for clause in affirmed), (name, report)
                assert not any(clause.endswith(f" {TERMS[name][0]}") for clause in denied), (name, report)


def test_no_label_reads_as_normal_and_unknown_labels_are_silent() -> None:
    for labels in ((), ("normal",), ("unheard of",)):
        assert all(report.startswith(NORMAL_PHRASES) for report in label_sentences(labels, 3))


def test_targets_are_asked_as_findings_are() -> None:
    assert target_prompts("normal") is None
    assert target_prompts("female") is None
    assert target_prompts("unheard of left") is None
    effusion, plain = target_prompts("effusion"), prompt_pair("effusion")
    assert effusion is not None
    assert set(plain.positive) <= set(effusion[0])
    assert set(plain.negative) <= set(effusion[1])
    assert target_prompts("phantom effusion") == effusion
    sided = target_prompts("phantom effusion left")
    assert sided is not None
    assert all("left" in sentence for side in sided for sentence in side)
    bacterial = target_prompts("bacterial")
    assert bacterial is not None
    assert "viral pneumonia" in bacterial[1]  # against the other cause, not against its absence
