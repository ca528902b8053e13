"""The configuration of ``python -m longctx_rl.data build``. Its defaults are in conf/build.yaml."""

from dataclasses import dataclass

from longctx_rl.config.reward import EndpointConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsConfig:
    """Prompts for the writer and the responder."""

    question: dict[str, str]
    """Task to prompt, with {passages} and {language}; the reply holds one JSON object."""
    closed_book: str
    """Prompt of the closed-book probe, with {question}."""
    supported: str
    """Prompt of the support check, with {passages}, {question} and {answer}. The first word of the reply must be yes or
    no."""
    response: str
    """Prompt of the responder, with {document} and {question}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """What is built from which documents, and by which models."""

    documents: str
    """Folder of .txt, .md, .html, .pdf and source files, searched with its subfolders."""
    out: str
    """Folder that receives the data set, its card, the report, the rejected questions and the cache of replies."""
    language: str
    """Code of the documents' language. auto: the model keeps to the document's language and names it."""
    source: str
    """Value of the rows' source column."""
    tasks: dict[str, int]
    """Number of questions requested for each document, by task."""
    passages: int
    """Passages of the document that a question draws on."""
    passage_characters: int
    """Size of a passage."""
    minimum_distance: float
    """Distance between passages, as a share of the document."""
    minimum_characters: int
    """Shorter documents are dropped."""
    attempts: int
    """Number of times that a question is requested in all; after a rejection, from other passages."""
    balance: bool
    """True: keep at most three times as many rows of a task and length as the median has."""
    seed: int
    writer: EndpointConfig
    """The model that writes questions, answers and evidence, answers the closed-book probe and checks that answers are
    supported."""
    responder: EndpointConfig | None
    """A teacher that answers from the whole document; its responses become a response_* column. None: no teacher."""
    prompts: PromptsConfig
    price_in: float
    """Dollars for a million prompt tokens, for the report."""
    price_out: float
    """Dollars for a million completion tokens, for the report."""
