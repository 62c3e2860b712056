"""Drives a headless Chromium through a panel's work, takes a picture of every page and checks it with axe-core.

    drive.py SITE OUT AXE

SITE is the built example `site`, OUT a directory for pictures and findings, AXE axe-core's `axe.min.js`. Needs Debian's
packages `chromium-driver` and `python3-selenium`. Fails on the first thing that is not as it should be, on any finding of axe that is serious or critical, on
a page wider than the screen, and on anything that the browser complains about (its console, the content security policy).
"""

import base64
import json
import pathlib
import subprocess
import sys
import time

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PASSWORD = "a password for tests"
SCREENS = {"phone": (390, 844), "desktop": (1280, 800)}
VOTES = 20


class Browser:
    def __init__(self, address, out, axe):
        options = webdriver.ChromeOptions()
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options)
        self.address, self.out, self.axe = address, out, axe
        self.findings = []
        self.shape("desktop", "light")

    def shape(self, screen, scheme):
        width, height = SCREENS[screen]
        phone = screen == "phone"
        cdp = self.driver.execute_cdp_cmd
        cdp("Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone})
        cdp("Emulation.setTouchEmulationEnabled", {"enabled": phone})
        cdp("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def open(self, path):
        self.driver.get(self.address + path)

    def path(self):
        return self.driver.current_url.removeprefix(self.address)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def has(self, selector):
        return bool(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def text(self):
        return self.one("main").text

    def keys(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def press(self, selector):
        """Clicks what may be replaced at any moment."""
        def pressed():
            self.one(selector).click()
            return True
        self.wait(selector, pressed)

    def fill(self, name, value):
        field = self.one(f"[name='{name}']")
        field.clear()
        field.send_keys(value)

    def tap(self, selector):
        """A finger on the middle of the element, if that is what lies there."""
        element = self.one(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        box = self.driver.execute_script(
            "const r = arguments[0].getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2, r.width, r.height]", element
        )
        x, y, width, height = box
        expect(width >= 40 and height >= 40, f"{selector} is {width} by {height}: too small for a finger")
        hit = self.driver.execute_script(
            "const e = document.elementFromPoint(arguments[1], arguments[2]); return e !== null && arguments[0].contains(e)", element, x, y
        )
        expect(hit, f"{selector} at {x}, {y} is covered by something else")
        cdp = self.driver.execute_cdp_cmd
        cdp("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        cdp("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        time.sleep(0.05)

    def wait(self, what, done):
        until = time.time() + 20
        while time.time() < until:
            try:
                if done():
                    return
            except Exception:  # the page is being replaced
                pass
            time.sleep(0.02)
        self.shot("failed")
        raise SystemExit(f"waited in vain for {what} on {self.path()}: {self.text()[:500]}")

    def leave(self, what, act):
        """Does something that leads to another page, and waits for it."""
        old = self.one("html")
        act()

        def gone():
            try:
                old.is_enabled()
                return False
            except Exception:
                return self.driver.execute_script("return document.readyState") == "complete"

        self.wait(what, gone)

    def shot(self, name):
        self.driver.save_screenshot(str(self.out / f"{name}.png"))

    def whole(self, name):
        """A picture of the whole page, however long."""
        picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        (self.out / f"{name}.png").write_bytes(base64.b64decode(picture["data"]))

    def look(self, name):
        """A picture in each shape, and axe's opinion."""
        for screen in SCREENS:
            for scheme in ("light", "dark"):
                self.shape(screen, scheme)
                time.sleep(0.15)
                where = f"{name}-{screen}-{scheme}"
                self.whole(where)
                over = self.driver.execute_script("return document.documentElement.scrollWidth - innerWidth")
                expect(over <= 0, f"{where} is {over} pixels wider than the screen")
                self.driver.execute_script(self.axe)
                found = self.driver.execute_async_script(
                    "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations))"
                )
                for violation in found:
                    nodes = [node["html"][:160] + " :: " + node.get("failureSummary", "")[:260] for node in violation["nodes"]]
                    self.findings.append({"page": where, "impact": violation["impact"], "rule": violation["id"], "nodes": nodes[:5]})
        self.shape("desktop", "light")

    def join(self, invite, name):
        self.driver.delete_all_cookies()
        self.open(invite)
        self.fill("name", name)
        self.fill("password", PASSWORD)
        self.leave("the account", lambda: self.one("button.primary").click())

    def sign_in(self, name):
        self.driver.delete_all_cookies()
        self.open("/signin")
        self.fill("name", name)
        self.fill("password", PASSWORD)
        self.leave("the session", lambda: self.keys(Keys.ENTER))

    def complaints(self):
        for entry in self.driver.get_log("browser"):
            expected = "status of 4" in entry["message"] or "favicon" in entry["message"]
            expect(expected or entry["level"] not in ("SEVERE", "WARNING"), f"the browser says: {entry}")


def expect(truth, what):
    if not truth:
        raise SystemExit(f"not as it should be: {what}")


def done_so_far(browser):
    words = browser.one(".status").text.split()
    return int(words[0]) if words[0].isdigit() else None


def calibrate(browser, label):
    """Answers known comparisons by keyboard until work begins."""
    rounds = 0
    while "Calibration" in browser.one(".status").text:
        browser.keys("2" if better_left(browser) else "6")
        browser.leave("feedback", lambda: browser.keys(Keys.ENTER))
        expect("As expected" in browser.text(), f"{label}: {browser.text()[:300]}")
        if rounds == 0 and label == "first":
            browser.look("feedback")
            browser.one("#go_on").send_keys("")
        browser.leave("the next one", lambda: browser.one("#go_on").send_keys(Keys.ENTER))
        rounds += 1
    return rounds


def better_left(browser):
    """The sample's better responses are known by their words."""
    left = browser.one("section.candidate.a").text
    return any(words in left for words in ("count", "chapter on pots", "Talk first"))


def skip_feedback(browser):
    """A known comparison in between is followed by its feedback."""
    if browser.has("#go_on"):
        browser.leave("the next one", lambda: browser.one("#go_on").send_keys(Keys.ENTER))


def by_keyboard(browser):
    browser.keys("?")
    expect(browser.one("#keys").get_attribute("open") is not None, "? shows the keys")
    browser.look("keys")
    browser.keys("?")
    browser.keys("r")
    expect(browser.one("#rubric").get_attribute("open") is not None, "r shows the rubric")
    browser.look("rubric-sheet")
    browser.keys("r")
    # An axis by key: down to the first one, answer it, and the overall question.
    browser.keys("j")
    browser.keys("1")
    expect(browser.has("input[name='axes.helpful'][value='left3']:checked"), "1 answers the marked axis")
    browser.keys("k", "k")
    browser.keys("5")
    browser.keys("e")
    browser.keys("as simple as that", Keys.ESCAPE)
    expect(browser.one("#reason").get_attribute("value") == "as simple as that", "e writes a reason")
    expect(browser.has("input[name='answer'][value=right1]:checked"), "k goes back to the overall question")
    browser.open("/compare")
    before = done_so_far(browser)
    made, other = 0, ["b", "s", "4", "1", "7"]
    while made < VOTES:
        browser.keys(other[made % len(other)] if made % 4 == 0 else ("2" if better_left(browser) else "6"))
        if not browser.has("input[name='answer']:checked"):
            browser.shot("failed")
            raise SystemExit(f"no key answered vote {made} on {browser.path()}: {browser.text()[:300]}")
        browser.leave("the next comparison", lambda: browser.keys(Keys.ENTER))
        skip_feedback(browser)
        made += 1
    after = done_so_far(browser)
    expect(after > before, f"{before} and then {after} judgements")
    browser.keys("2" if better_left(browser) else "6")
    shown = browser.one("[name=assignment]").get_attribute("value")
    browser.leave("the next comparison", lambda: browser.keys(Keys.ENTER))
    if browser.has("#go_on"):
        skip_feedback(browser)
        return
    browser.leave("the comparison before", lambda: browser.keys("u"))
    expect(browser.one("[name=assignment]").get_attribute("value") == shown, "u shows the last comparison again")


def by_touch(browser):
    browser.shape("phone", "light")
    browser.open("/compare")
    made = 0
    while made < VOTES:
        if not browser.has("#vote"):
            break
        answer = ["left2", "right2", "tie", "left1", "both_bad"][made % 5]
        browser.tap(f"label:has([name=answer][value={answer}])")
        expect(browser.has(f"[name=answer][value={answer}]:checked"), f"a finger answers {answer}")
        if made == 0:
            browser.tap("label:has([name='axes.honest'][value=tie])")
        browser.leave("the next comparison", lambda: browser.tap(".others button"))
        if browser.has("#go_on"):
            browser.leave("the next one", lambda: browser.tap("#go_on"))
        made += 1
    expect(made == VOTES, f"{made} votes by touch: {browser.text()[:300]}")
    browser.leave("the comparison before", lambda: browser.tap("#undo"))
    browser.shape("desktop", "light")


def shown_steps(browser):
    """The step that the page of a run says it is at."""
    words = browser.one("#live").text.split("step ")[1]
    return int("".join(c for c in words.split()[0] if c.isdigit()))


def dashboards(browser):
    """Every dashboard, and a run's page while it trains."""
    browser.open("/runs")
    browser.look("runs")
    for name in ("ppo", "ppo-hard"):
        browser.press(f"input[name=run][value='{name}']")
    # A tick survives the page's own refreshing.
    kept = browser.one("#live").get_attribute("data-seen")
    browser.wait("the list to be refreshed", lambda: browser.one("#live").get_attribute("data-seen") != kept)
    expect(browser.has("input[name=run][value='ppo']:checked"), "a tick is kept when the list is refreshed")
    browser.leave("the comparison", lambda: browser.press("form[action='/runs/compare'] button"))
    expect("kl_coef" in browser.text(), browser.text()[:300])
    browser.look("runs-compare")
    for name in ("ppo", "ppo-hard", "ppo-lost"):
        browser.open("/runs/" + name)
        browser.look("run-" + name)

    # A run that trains: new steps come without a reload, and what was opened stays open.
    browser.open("/runs/ppo-now")
    browser.look("run-now")
    browser.press("#numbers summary")
    before, drawn = shown_steps(browser), browser.one("figure.chart svg path").get_attribute("d")
    browser.driver.execute_script("window.same = true")
    browser.wait("a step", lambda: shown_steps(browser) > before)
    browser.wait("the curve", lambda: browser.one("figure.chart svg path").get_attribute("d") != drawn)
    expect(browser.one("#numbers").get_attribute("open") is not None, "what was opened stays open")
    expect(browser.driver.execute_script("return window.same"), "the page was not reloaded")
    browser.look("run-now-later")

    browser.open("/evaluations?model=77ab01cd9e10&baseline=3f9a81c2d4e5")
    browser.look("evaluations")
    browser.open("/verdicts")
    browser.look("verdicts")
    browser.leave("a verdict", lambda: browser.one("a[href^='/verdicts/']").click())
    browser.look("verdict")
    browser.open("/releases")
    browser.look("releases")
    browser.open("/releases/production-1/card")
    browser.look("release-card")
    browser.open("/releases/production-1/lineage")
    expect(browser.driver.execute_script("return document.querySelector('img.lineage').naturalWidth > 0"), "the lineage is drawn")
    browser.look("release-lineage")


def main():
    site, out, axe = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    server = subprocess.Popen([site], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    start = json.loads(server.stdout.readline())
    browser = Browser(start["address"], out, axe.read_text())
    invites = start["invites"]
    try:
        # First, while one of the runs still trains.
        browser.join(invites["admin"], "Root")
        dashboards(browser)
        browser.driver.delete_all_cookies()
        browser.open("/signin")
        browser.look("signin")
        browser.open(invites["annotator"])
        browser.look("invite")
        browser.join(invites["annotator"], "Ines")
        expect(browser.path() == "/compare", browser.path())
        browser.look("calibration")
        expect(calibrate(browser, "first") == 2, "two known answers come first")
        browser.look("compare")
        by_keyboard(browser)
        by_touch(browser)
        browser.open("/account")
        browser.look("account")

        browser.sign_in("Root")
        for path in ("overview", "people", "settings", "rubric", "rubric/edit", "review", "review/all", "panel", "calibration",
                     "datasets", "ledger", "formulas"):
            browser.open("/" + path)
            browser.look(path.replace("/", "-"))
        browser.open("/panel")
        browser.leave("an annotator", lambda: browser.one("td a[href^='/panel/']").click())
        browser.look("annotator")
        browser.open("/rubric/edit")
        browser.fill("instructions", "Judge what each does for the person who asked. **Short is fine.**")
        browser.fill("note", "short is fine")
        browser.one("[name=recalibrate]").click()
        browser.leave("the rubric", lambda: browser.one("button.primary").click())
        expect("Rubric, version 2 (current)" in browser.text(), browser.text()[:200])
        browser.open("/datasets")
        browser.fill("name", "first")
        browser.leave("the dataset", lambda: browser.one("button.primary").click())
        expect("first" in browser.text(), browser.text()[:200])
        browser.look("datasets-frozen")
        exported = out / "first-train.jsonl"
        exported.unlink(missing_ok=True)
        browser.driver.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(out)})
        browser.one("form[action='/datasets/export'] button").click()
        browser.wait("the exported file", exported.is_file)
        rows = [json.loads(line) for line in exported.read_text().splitlines()]
        expect(rows and all(row["chosen"] != row["rejected"] for row in rows), f"rows as trainers read them, {rows[:1]}")
        browser.open("/nothing-here")
        browser.look("error")

        browser.sign_in("Ines")
        expect("The rubric changed" in browser.text(), browser.text()[:300])
        if "Calibration" not in browser.one(".status").text:
            # One was in hand when the rubric changed.
            browser.keys("4")
            browser.leave("calibration", lambda: browser.keys(Keys.ENTER))
            skip_feedback(browser)
        expect(calibrate(browser, "again") == 2, "a changed rubric asks for calibration again")

        browser.join(invites["reviewer"], "Rhea")
        browser.leave("a comparison", lambda: browser.one("td a[href^='/review/']").click())
        browser.look("review-one")
        expect("Which models wrote them" in browser.text(), "review is blind")
        browser.one("select[name=answer] option[value=left2]").click()
        browser.leave("the decision", lambda: browser.one("form[action^='/review/'] button.primary").click())
        expect("A clearly better" in browser.text() and "sft" in browser.text(), browser.text()[:500])
        browser.complaints()
    finally:
        (out / "axe.json").write_text(json.dumps(browser.findings, indent=1))
        browser.driver.quit()
        server.stdin.close()
        server.wait(timeout=20)
    bad = [finding for finding in browser.findings if finding["impact"] in ("serious", "critical")]
    for finding in bad:
        print(json.dumps(finding))
    expect(not bad, f"{len(bad)} serious findings of axe")
    print(f"the browser did it all: {len(list(out.glob('*.png')))} pictures, {len(browser.findings)} lesser findings, in {out}")


main()
