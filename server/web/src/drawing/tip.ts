// The one tooltip: exact numbers beside the pointer. Elements say what by data-tip.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;

export function showTip(text: string, x: number, y: number): void {
  if (!tip.isConnected) document.body.append(tip);
  tip.textContent = text;
  tip.hidden = false;
  const { offsetWidth: width, offsetHeight: height } = tip;
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 4))}px`;
  tip.style.top = `${y + height + 22 > innerHeight ? y - height - 12 : y + 16}px`;
}

export function hideTip(): void {
  tip.hidden = true;
}

/** Shows the tip of whatever in an element has one. */
export function tips(root: HTMLElement): void {
  root.addEventListener("pointermove", (event) => {
    const text = (event.target as Element).closest?.("[data-tip]")?.getAttribute("data-tip");
    if (text) showTip(text, event.clientX, event.clientY);
    else hideTip();
  });
  root.addEventListener("pointerleave", hideTip);
}
