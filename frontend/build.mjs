// Bundle Uppy into tusd_py/web/assets, with the licences of everything that went in.
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { build } from "esbuild"

const here = fileURLToPath(new URL(".", import.meta.url))
const target = fileURLToPath(new URL("../tusd_py/web/assets", import.meta.url))
const banner = "/* Uppy and what it is made of; licences: licenses.txt */"

/** Answer the folder of the npm package that a bundled file belongs to; null: the file is ours. */
function packageOf(file) {
  return /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(file)?.[0] ?? null
}

/** Answer name, version and licence of a package as text. */
async function licenceOf(folder) {
  const { name, version, license } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"))
  const file = (await readdir(folder)).find((entry) => /^licen[cs]e/i.test(entry))
  const text = file ? await readFile(join(folder, file), "utf8") : `Licence: ${license}\n`
  return `${name} ${version}\n\n${text.trim()}\n`
}

await mkdir(target, { recursive: true })
const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: ["src/uppy.js", "src/uppy.css"],
  outdir: target,
  bundle: true,
  minify: true,
  format: "iife",
  globalName: "Uppy",
  target: ["es2022"],
  banner: { js: banner, css: banner },
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
})
const folders = new Set(Object.keys(metafile.inputs).map(packageOf))
folders.delete(null)
const licences = await Promise.all([...folders].sort().map((folder) => licenceOf(join(here, folder))))
await writeFile(join(target, "licenses.txt"), licences.join(`\n${"-".repeat(80)}\n\n`))
