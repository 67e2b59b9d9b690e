// Keyboard focus in a row of buttons of which one is a tab stop.

/** The arrow keys move among the tokens of a strip. */
export function moveFocus(event: KeyboardEvent): void {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const chip = event.currentTarget as HTMLElement;
  const next = (step > 0 ? chip.nextElementSibling : chip.previousElementSibling) as HTMLElement | null;
  next?.focus();
  event.preventDefault();
  event.stopPropagation();
}
