// Errors in words, and near words for one that a model does not know.
import { ApiError } from "../api/api.ts";

/** A word that is not in the vocabulary, and those that are near it. */
export interface Unknown {
  word: string;
  near: string[];
}

export interface Problem {
  message: string;
  /** Whether the same question is asked again by itself. */
  passes: boolean;
  unknown: Unknown | null;
}

export function problemOf(error: unknown): Problem {
  if (!(error instanceof ApiError))
    return { message: error instanceof Error ? error.message : String(error), passes: false, unknown: null };
  const text = error.message.replace(`${error.field}: `, "");
  return {
    message: error.field ? `${error.field}: ${text}` : text,
    passes: error.retry,
    unknown: unknownOf(error),
  };
}

/** Reads the refusal of a word: which one, and those that are near it, in quotes. */
function unknownOf({ message }: ApiError): Unknown | null {
  const word = /the word '(.+?)' is not in/.exec(message)?.[1];
  if (word === undefined) return null;
  const near = /did you mean (.+)\?$/.exec(message)?.[1] ?? "";
  return { word, near: [...near.matchAll(/(['"])(.+?)\1(?: or |$)/g)].map((each) => each[2]) };
}
