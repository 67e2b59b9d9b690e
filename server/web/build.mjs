// Bundles the page into server/attention_server/rest/page/ and the viewer into client/attention_client/display/viewer.html.
// With --check it writes nothing, and fails when what is there is not what the source builds.
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const page = join(here, "../attention_server/rest/page");
const viewer = join(here, "../../client/attention_client/display/viewer.html");
const target = ["chrome123", "firefox121", "safari17.5"];

// The packages that a bundle holds something of, by their folders.
const bundled = new Set();
const bundle = async (entry) => {
  const { outputFiles, metafile } = await build({
    absWorkingDir: here,
    entryPoints: [entry],
    bundle: true,
    minify: true,
    write: false,
    charset: "utf8",
    format: entry.endsWith(".ts") ? "iife" : undefined,
    legalComments: "none",
    metafile: true,
    target,
  });
  for (const { inputs } of Object.values(metafile.outputs))
    for (const [path, { bytesInOutput }] of Object.entries(inputs)) {
      const [, folder] = path.match(/(?:^|\/)(node_modules\/(?:@[^/]+\/)?[^/]+)/) ?? [];
      if (folder && bytesInOutput) bundled.add(folder);
    }
  return outputFiles[0].text.trimEnd();
};
const hash = (text, algorithm, encoding) => createHash(algorithm).update(text).digest(encoding);
const fill = (template, values) =>
  Object.entries(values).reduce((text, [name, value]) => text.replace(`{{${name}}}`, () => value), template);
const read = (name) => readFileSync(join(here, name), "utf8");

const [style, script, viewerScript] = await Promise.all(["src/style.css", "src/page.ts", "src/viewer.ts"].map(bundle));

// The licences of what is bundled ask to travel with it.
const licences = [...bundled]
  .sort()
  .map((folder) => {
    const { name, version } = JSON.parse(read(`${folder}/package.json`));
    return `${name} ${version}\n\n${read(`${folder}/LICENSE`).trim()}\n`;
  })
  .join("\n\n");
// A script's end tag inside the script would end it.
const inline = viewerScript.replaceAll("</script", "<\\/script");
const viewerPage = fill(read("viewer.html"), {
  scriptHash: hash(inline, "sha256", "base64"),
  styleHash: hash(style, "sha256", "base64"),
  style,
  script: inline,
  licences,
});
const named = (name, text, ending) => `${name}-${hash(text, "sha256", "hex").slice(0, 12)}.${ending}`;
const names = {
  style: named("page", style, "css"),
  script: named("page", script, "js"),
  viewer: named("viewer", viewerPage, "html"),
};
const wanted = new Map([
  [join(page, "index.html"), fill(read("index.html"), names)],
  [join(page, names.style), style],
  [join(page, names.script), script],
  [join(page, names.viewer), viewerPage],
  [join(page, "LICENSES.txt"), licences],
  [viewer, viewerPage],
]);
const stale = existsSync(page)
  ? readdirSync(page)
      .map((name) => join(page, name))
      .filter((path) => !wanted.has(path))
  : [];
const changed = [...wanted].filter(([path, text]) => !existsSync(path) || readFileSync(path, "utf8") !== text);

if (process.argv.includes("--check")) {
  const wrong = [...stale, ...changed.map(([path]) => path)];
  for (const path of wrong)
    console.error(`not what the source builds: ${relative(process.cwd(), path)}; run \`make web\``);
  process.exit(wrong.length ? 1 : 0);
}
mkdirSync(page, { recursive: true });
for (const path of stale) rmSync(path);
for (const [path, text] of changed) writeFileSync(path, text);
for (const [path, text] of wanted) console.log(`${relative(process.cwd(), path)} ${Math.ceil(text.length / 1024)} KiB`);
