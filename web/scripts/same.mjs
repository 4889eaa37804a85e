// Builds the page again, elsewhere, and fails where it differs from the committed one.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const place = mkdtempSync(join(tmpdir(), "lxt_fx_page_"));
try {
  execFileSync("npx", ["vite", "build", "--logLevel", "warn"], {
    stdio: "inherit",
    env: { ...process.env, LXT_FX_BUNDLE: place },
  });
  const built = readFileSync(join(place, "explorer.html"));
  const committed = readFileSync("../lxt_fx/explorer/bundle/explorer.html");
  if (!built.equals(committed)) {
    console.error(
      `lxt_fx/explorer/bundle/explorer.html (${committed.length} bytes) is not what web/ builds (${built.length} bytes); ` +
        "run npm run build in web/ and commit the file",
    );
    process.exitCode = 1;
  } else {
    console.log(`explorer.html is what web/ builds: ${built.length} bytes`);
  }
} finally {
  rmSync(place, { recursive: true });
}
