"""The configuration of ``python -m longctx_rl.data build``: conf/build.yaml. See there."""

from dataclasses import dataclass

from longctx_rl.config.reward import EndpointConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsConfig:
    """What the models are asked, as text."""

    question: dict[str, str]
    """Task to prompt, with {passages} and {language}; the reply holds one JSON object."""
    closed_book: str
    """With {question}."""
    supported: str
    """With {passages}, {question} and {answer}; the first word must be yes or no."""
    response: str
    """With {document} and {question}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    documents: str
    """Folder of txt, md, html, pdf and source files."""
    out: str
    language: str
    """Code of the documents' language, or auto: the model is asked to keep to the document's."""
    source: str
    """Value of the rows' source column."""
    tasks: dict[str, int]
    """Task to questions that are asked for in each document."""
    passages: int
    """Places in the document that a question draws on."""
    passage_characters: int
    minimum_distance: float
    """Between passages, as a share of the document."""
    minimum_characters: int
    """Shorter documents are left out."""
    attempts: int
    """Times that a rejected question is asked for anew, from other passages."""
    balance: bool
    """Keep at most three times as many rows of a task and length as the median has."""
    seed: int
    writer: EndpointConfig
    """Writes questions, answers and evidence; answers the closed-book probe and says whether answers are supported."""
    responder: EndpointConfig | None
    """Answers from the whole document: a response_* column. None: no such column."""
    prompts: PromptsConfig
    price_in: float
    """Dollars for a million prompt tokens, for the report."""
    price_out: float
