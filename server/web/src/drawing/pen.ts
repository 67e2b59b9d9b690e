// One way to draw, on a canvas for the screen and into SVG for files.

export interface TextStyle {
  size: number;
  fill: string;
  anchor?: "start" | "middle" | "end";
  bold?: boolean;
  /** Degrees, around the point. */
  turn?: number;
}

export interface Pen {
  rect(x: number, y: number, width: number, height: number, fill: string): void;
  frame(x: number, y: number, width: number, height: number, stroke: string, line: number): void;
  text(x: number, y: number, content: string, style: TextStyle): void;
  /** An SVG path, stroked. */
  path(d: string, stroke: string, line: number, opacity: number): void;
  /** Pixels, each as large as it takes to fill the rectangle. */
  image(x: number, y: number, width: number, height: number, pixels: ImageData): void;
}

export const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';

export class CanvasPen implements Pen {
  constructor(private readonly context: CanvasRenderingContext2D) {}

  rect(x: number, y: number, width: number, height: number, fill: string): void {
    this.context.fillStyle = fill;
    this.context.fillRect(x, y, width, height);
  }

  frame(x: number, y: number, width: number, height: number, stroke: string, line: number): void {
    this.context.strokeStyle = stroke;
    this.context.lineWidth = line;
    this.context.strokeRect(x, y, width, height);
  }

  text(
    x: number,
    y: number,
    content: string,
    { size, fill, anchor = "start", bold = false, turn = 0 }: TextStyle,
  ): void {
    const { context } = this;
    context.save();
    context.translate(x, y);
    context.rotate((turn * Math.PI) / 180);
    context.font = `${bold ? 600 : 400} ${size}px ${FONT}`;
    context.fillStyle = fill;
    context.textAlign = anchor === "middle" ? "center" : anchor;
    context.textBaseline = "middle";
    context.fillText(content, 0, 0);
    context.restore();
  }

  path(d: string, stroke: string, line: number, opacity: number): void {
    const { context } = this;
    context.globalAlpha = opacity;
    context.strokeStyle = stroke;
    context.lineWidth = line;
    context.stroke(new Path2D(d));
    context.globalAlpha = 1;
  }

  image(x: number, y: number, width: number, height: number, pixels: ImageData): void {
    this.context.imageSmoothingEnabled = false;
    this.context.drawImage(bitmap(pixels), x, y, width, height);
  }
}

export class SvgPen implements Pen {
  private readonly parts: string[] = [];

  rect(x: number, y: number, width: number, height: number, fill: string): void {
    this.parts.push(`<rect x="${r(x)}" y="${r(y)}" width="${r(width)}" height="${r(height)}" fill="${fill}"/>`);
  }

  frame(x: number, y: number, width: number, height: number, stroke: string, line: number): void {
    const box = `x="${r(x)}" y="${r(y)}" width="${r(width)}" height="${r(height)}"`;
    this.parts.push(`<rect ${box} fill="none" stroke="${stroke}" stroke-width="${line}"/>`);
  }

  text(
    x: number,
    y: number,
    content: string,
    { size, fill, anchor = "start", bold = false, turn = 0 }: TextStyle,
  ): void {
    const place = turn ? `transform="translate(${r(x)} ${r(y)}) rotate(${turn})"` : `x="${r(x)}" y="${r(y)}"`;
    const weight = bold ? ' font-weight="600"' : "";
    const style = `font-size="${size}" fill="${fill}" text-anchor="${anchor}" dominant-baseline="central"${weight}`;
    this.parts.push(`<text ${place} ${style}>${escaped(content)}</text>`);
  }

  path(d: string, stroke: string, line: number, opacity: number): void {
    const style = `fill="none" stroke="${stroke}" stroke-width="${r(line)}" stroke-opacity="${r(opacity)}"`;
    this.parts.push(`<path d="${d}" ${style}/>`);
  }

  image(x: number, y: number, width: number, height: number, pixels: ImageData): void {
    const box = `x="${r(x)}" y="${r(y)}" width="${r(width)}" height="${r(height)}"`;
    const href = bitmap(pixels).toDataURL("image/png");
    this.parts.push(`<image ${box} preserveAspectRatio="none" image-rendering="pixelated" href="${href}"/>`);
  }

  document(width: number, height: number, title: string): string {
    const size = `width="${width}" height="${height}" viewBox="0 0 ${width} ${height}"`;
    const font = escaped(FONT);
    const head = `<svg xmlns="http://www.w3.org/2000/svg" ${size} role="img" font-family="${font}">`;
    return `${head}<title>${escaped(title)}</title>${this.parts.join("")}</svg>\n`;
  }
}

function bitmap(pixels: ImageData): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = pixels.width;
  canvas.height = pixels.height;
  canvas.getContext("2d")!.putImageData(pixels, 0, 0);
  return canvas;
}

function r(value: number): string {
  return String(Math.round(value * 100) / 100);
}

function escaped(text: string): string {
  const names: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return text.replace(/[&<>"]/g, (each) => names[each]).replace(/\p{Cc}/gu, " ");
}
