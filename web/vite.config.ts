import { defineConfig } from "vite";
import { onePage } from "./scripts/one_page.mjs";

export default defineConfig({
  base: "./",
  esbuild: { jsx: "automatic", jsxImportSource: "preact", legalComments: "none" },
  plugins: [onePage("explorer.html")],
  build: {
    outDir: process.env["LXT_FX_BUNDLE"] ?? "../lxt_fx/explorer/bundle",
    emptyOutDir: false,
    target: "es2022",
    modulePreload: false,
    cssCodeSplit: false,
    assetsInlineLimit: 1_000_000,
    rollupOptions: { output: { format: "iife" } },
  },
});
