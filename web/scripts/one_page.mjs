// Writes the built page as one file: style and script inside it, allowed by their hashes and nothing else.
import { createHash } from "node:crypto";

const hash = (text) => `'sha256-${createHash("sha256").update(text, "utf8").digest("base64")}'`;

/** A vite plugin that puts the script and the style of the page into the page, under the name `file`. */
export function onePage(file) {
  return {
    name: "one-page",
    apply: "build",
    enforce: "post",
    generateBundle(_options, bundle) {
      const found = Object.values(bundle);
      const script = found.find((item) => item.type === "chunk").code.trim();
      const style = found.find((item) => item.fileName.endsWith(".css")).source.toString().trim();
      const page = found.find((item) => item.fileName.endsWith(".html")).source.toString();
      if (/<\/script|<!--/i.test(script) || /<\/style/i.test(style)) {
        throw new Error("the script or the style would end its own element");
      }
      const policy = [
        "default-src 'none'",
        `script-src ${hash(script)}`,
        `style-src ${hash(style)}`,
        "img-src data: blob:",
        "connect-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
      ].join("; ");
      const source = page
        .replace(/\s*<script type="module"[^>]*><\/script>/, "")
        .replace(/\s*<link rel="stylesheet"[^>]*>/, "")
        .replace("<!-- policy -->", () => `<meta http-equiv="Content-Security-Policy" content="${policy}">`)
        .replace("<!-- style -->", () => `<style>${style}</style>`)
        .replace("<!-- script -->", () => `<script>${script}</script>`);
      for (const item of found) delete bundle[item.fileName];
      this.emitFile({ type: "asset", fileName: file, source });
    },
  };
}
