"""Labelled data: readers, splits, features and batches for the tasks that models are adapted to.

Names are loaded on first use, as in `fmjax.data`.
"""

import importlib

_HOME = {
    "Origin": "tables",
    "Report": "tables",
    "Table": "tables",
    "read_table": "tables",
    "split_of": "tables",
    "Classification": "classification",
    "read_classification": "classification",
    "balanced_weights": "labels",
    "positive_weights": "labels",
    "Overlap": "splits",
    "leave_out": "splits",
    "normalise": "splits",
    "overlap": "splits",
    "stratified_split": "splits",
    "Pairs": "pairs",
    "read_pairs": "pairs",
    "Features": "features",
    "classification_features": "features",
    "pair_features": "features",
    "text_features": "features",
    "LENGTH_BUCKETS": "collate",
    "EvalTaskBatches": "batches",
    "eval_task_batches": "batches",
    "task_batches": "batches",
    "Conversations": "conversations",
    "read_conversations": "conversations",
    "Preferences": "preferences",
    "read_preferences": "preferences",
    "preference_batches": "preferences",
    "preference_eval_batches": "preferences",
    "preference_features": "preferences",
    "Entity": "schemes",
    "entities": "schemes",
    "Tagging": "tagging",
    "read_tagging": "tagging",
    "TaggingFeatures": "token_labels",
    "WordTags": "token_labels",
    "entity_spans": "token_labels",
    "split_words": "token_labels",
    "tagging_features": "token_labels",
    "word_tags": "token_labels",
    "Questions": "questions",
    "read_questions": "questions",
    "Answer": "answer_spans",
    "QuestionFeatures": "answer_windows",
    "Span": "answer_spans",
    "best_spans": "answer_spans",
    "question_features": "answer_windows",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"fmjax.data.tasks.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
