// Opens a report in headless Chromium: screenshots, console, network requests, and axe-core's accessibility check.
//
//   npm install --no-save puppeteer-core@24 axe-core@4
//   node benchmarks/report/check.mjs reports/report.html [FOLDER FOR SCREENSHOTS]
//
// CHROMIUM names the browser (default /usr/bin/chromium). Exits with 1 where the page asked for anything, wrote to the
// console, is wider than the screen, or has a serious or critical fault.
import { createRequire } from "node:module";
import { mkdirSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const here = createRequire(resolve(process.cwd(), "package.json"));
const puppeteer = here("puppeteer-core");
const axe = readFileSync(here.resolve("axe-core/axe.min.js"), "utf8");

const [report, folder = "screenshots"] = process.argv.slice(2);
if (!report) {
  console.error("usage: node check.mjs REPORT.html [FOLDER]");
  process.exit(2);
}
const address = pathToFileURL(resolve(report)).href;
mkdirSync(folder, { recursive: true });

const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--force-color-profile=srgb"],
});
let faults = 0;
for (const [width, height] of [[1280, 900], [390, 844]]) {
  for (const scheme of ["light", "dark"]) {
    const page = await browser.newPage();
    const requests = [];
    const messages = [];
    const network = await page.createCDPSession();
    await network.send("Network.enable");
    network.on("Network.requestWillBeSent", (event) => requests.push(event.request.url));
    page.on("console", (message) => messages.push(`${message.type()}: ${message.text()}`));
    page.on("pageerror", (error) => messages.push(`error: ${error.message}`));
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await page.setViewport({ width, height, deviceScaleFactor: 1, isMobile: width < 600 });
    await page.goto(address, { waitUntil: "networkidle0" });
    const elsewhere = requests.filter((url) => url !== address);
    await page.screenshot({ path: `${folder}/${width}-${scheme}.png`, fullPage: true });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
    const size = await page.evaluate(() =>
      Math.min(...[...document.querySelectorAll("svg text")].map((text) => text.getBoundingClientRect().height)));
    const scripts = await page.evaluate(() => document.scripts.length);
    const client = await page.createCDPSession();
    // The page's own policy forbids every script; the check is let in past it, after all else was looked at.
    await client.send("Page.setBypassCSP", { enabled: true });
    await page.reload({ waitUntil: "networkidle0" });
    await page.evaluate(() => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
    await page.evaluate(axe);
    const found = await page.evaluate(() => window.axe.run(document));
    const bad = found.violations.filter((one) => ["serious", "critical"].includes(one.impact));
    for (const one of found.violations) {
      console.log(`  axe ${one.impact}: ${one.id}: ${one.help} (${one.nodes.length}): ${one.nodes[0].html.slice(0, 200)}`);
    }
    console.log(
      `${width} px, ${scheme}: ${elsewhere.length} requests elsewhere, ${messages.length} console messages, ${scripts} ` +
      `scripts, ${Math.max(0, wide)} px too wide, smallest text of a plot ${size.toFixed(1)} px, axe: ` +
      `${found.passes.length} rules pass, ${found.violations.length} violated, ${bad.length} serious or critical, ` +
      `${found.incomplete.length} to look at by hand (${found.incomplete.map((one) => one.id).join(", ")})`);
    for (const text of [...elsewhere, ...messages]) console.log(`  ${text}`);
    faults += elsewhere.length + messages.length + scripts + bad.length + (wide > 0 ? 1 : 0);
    await page.close();
  }
}
const page = await browser.newPage();
await page.goto(address);
await page.pdf({ path: `${folder}/print.pdf`, format: "A4" });
await browser.close();
process.exit(faults ? 1 : 0);
