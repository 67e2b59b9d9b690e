"""Structured logs on stderr; stdout has one line alone, which announces that the server is ready."""

import logging

import structlog

from attention_server.telemetry.log_rates import LogRates
from attention_server.telemetry.log_writer import LogWriter

writer = LogWriter()
rates = LogRates()


def configure(level: str, form: str) -> None:
    """Configure logging for the process: `writer` writes the lines, of each cause as many as `rates` admits.

    Args:
        level: the least severe level that is logged.
        form: `text` for people, `json` for log collectors.
    """
    renderers: list[structlog.typing.Processor] = (
        [structlog.processors.JSONRenderer()]
        if form == "json"
        else [_escape, structlog.dev.ConsoleRenderer(colors=False)]
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[rates.process, *shared, structlog.processors.format_exc_info, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(writer),  # type: ignore[arg-type] # it writes and flushes
        cache_logger_on_first_use=True,
    )
    # Records of libraries, from the standard library's logging, get the same format.
    handler = logging.StreamHandler(writer)
    handler.addFilter(rates.filter)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,  # ConsoleRenderer's own would print variables
            *renderers,
        ],
    )
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def losses() -> dict[str, int]:
    """Return the number of log lines that are missing, by cause: `thinned`, and those of `LogLosses`."""
    return {"thinned": rates.thinned, **writer.losses._asdict()}


def _escape(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape unprintable characters: a caller's text must not forge a line or move the terminal's cursor."""
    escaped = {name: _printable(value) if isinstance(value, str) else value for name, value in event.items()}
    if "exception" in event:  # indented, so that its lines cannot pass for records
        escaped["exception"] = "\n".join(f"    {_printable(line)}" for line in event["exception"].split("\n"))
    return escaped


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
