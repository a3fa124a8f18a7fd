#!/usr/bin/env python3
"""Tests of the digits eval endpoint as a client sees it: python3 -m unittest (standard library + numpy)."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import urllib.error
import urllib.request

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
TASKS = HERE / "tasks"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Endpoint:
    """The server as a child process on a free port."""

    def __init__(self, *options):
        command = [sys.executable, str(HERE / "eval_endpoint.py"), "--zoo", str(TASKS), "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        match = re.search(r"http://127\.0\.0\.1:\d+", line)
        if not match:
            raise RuntimeError(f"the endpoint did not start: {line!r}")
        self.url = match.group()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def call(self, path, document=None):
        """Status and parsed body of one call."""
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(self.url + path, data=body, headers={"Idempotency-Key": "test"})
        try:
            with DIRECT.open(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


def evaluation(folder, *tasks, **more):
    return {"protocol": "1.0", "evaluation_id": "ev_1", "candidate": {"id": "c1", "source": {"kind": "path", "path": str(folder)}},
            "tasks": list(tasks), **more}


class EvalEndpointTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.endpoint = Endpoint()
        cls.addClassCleanup(cls.endpoint.close)

    def evaluate(self, *arguments, **more):
        return self.endpoint.call("/v1/evaluations", evaluation(*arguments, **more))

    def test_health(self):
        status, health = self.endpoint.call("/v1/health")
        self.assertEqual((status, health["status"]), (200, "ok"))
        self.assertTrue(health["instance_id"])

    def test_capabilities(self):
        status, known = self.endpoint.call("/v1/capabilities")
        self.assertEqual(status, 200)
        self.assertEqual((known["protocol"], known["sources"]), (["1.0"], ["path"]))
        tasks = {task["name"]: task for task in known["tasks"]}
        self.assertEqual(sorted(tasks), ["clean", "fog", "parity", "rot90", "uci"])
        self.assertEqual(tasks["fog"]["n_samples"], 240)
        self.assertEqual(tasks["fog"]["metrics"][0]["name"], "accuracy")

    def test_scores_are_those_that_the_zoo_was_published_with(self):
        expected = json.loads((TASKS / "individual.json").read_text())["base"]["val"]
        status, answer = self.evaluate(TASKS / "base", *({"name": name} for name in expected))
        self.assertEqual((status, answer["status"], answer["evaluation_id"], answer["candidate_id"]), (200, "succeeded", "ev_1", "c1"))
        for name, accuracy in expected.items():
            self.assertEqual(answer["tasks"][name]["n"], 240)
            self.assertAlmostEqual(answer["tasks"][name]["metrics"]["accuracy"]["value"], accuracy, places=4)

    def test_per_sample_scores_follow_the_ids(self):
        ids = [7, 3, 200]
        _, answer = self.evaluate(TASKS / "base", {"name": "fog", "sample_ids": ids}, per_sample="scores")
        task = answer["tasks"]["fog"]
        self.assertEqual((task["n"], task["per_sample"]["ids"]), (3, ids))
        scores = task["per_sample"]["scores"]["accuracy"]
        self.assertAlmostEqual(task["metrics"]["accuracy"]["value"], float(np.mean(scores)))
        _, turned = self.evaluate(TASKS / "base", {"name": "fog", "sample_ids": ids[::-1]}, per_sample="scores")
        self.assertEqual(turned["tasks"]["fog"]["per_sample"]["scores"]["accuracy"], scores[::-1])

    def test_limits_are_nested(self):
        chosen = {}
        for limit in (10, 50):
            _, answer = self.evaluate(TASKS / "base", {"name": "uci", "limit": limit, "seed": 7}, per_sample="scores")
            chosen[limit] = set(answer["tasks"]["uci"]["per_sample"]["ids"])
            self.assertEqual(len(chosen[limit]), limit)
        self.assertLess(chosen[10], chosen[50])

    def test_an_unknown_task_is_a_configuration_error(self):
        status, problem = self.evaluate(TASKS / "base", {"name": "fgo"})
        self.assertEqual((status, problem["code"], problem["class"]), (400, "unknown_task", "configuration"))
        self.assertIn("fog", problem["detail"])

    def test_a_request_that_is_none_is_a_configuration_error(self):
        status, problem = self.endpoint.call("/v1/evaluations", {"tasks": []})
        self.assertEqual((status, problem["class"]), (400, "configuration"))

    def test_a_request_with_a_wrong_part_is_refused_and_the_part_named(self):
        source = {"kind": "path", "path": str(TASKS / "base")}
        for part, task in [
            ("sample_ids", {"name": "fog", "sample_ids": []}),
            ("sample_ids", {"name": "fog", "sample_ids": ["x"]}),
            ("sample_ids", {"name": "fog", "sample_ids": [1.5]}),
            ("sample_ids", {"name": "fog", "sample_ids": [True]}),
            ("sample_ids", {"name": "fog", "sample_ids": 3}),
            ("sample ids", {"name": "fog", "sample_ids": [-1]}),
            ("sample ids", {"name": "fog", "sample_ids": [240]}),
            ("limit", {"name": "fog", "limit": 0}),
            ("limit", {"name": "fog", "limit": "10"}),
            ("seed", {"name": "fog", "limit": 9, "seed": -1}),
            ("seed", {"name": "fog", "limit": 9, "seed": 2**32}),
            ("seed", {"name": "fog", "seed": "7"}),
            ("name", {}),
            ("name", {"name": ["fog"]}),
            ("tasks[0]", "fog"),
        ]:
            self.assert_refused(evaluation(TASKS / "base", task), part)
        for part, change in [
            ("evaluation_id", {"evaluation_id": float("nan")}),
            ("candidate", {"candidate": None}),
            ("candidate.id", {"candidate": {"id": 1, "source": source}}),
            ("candidate.source", {"candidate": {"id": "c1", "source": []}}),
            ("by path only", {"candidate": {"id": "c1", "source": {"kind": "recipe", "recipe": {}}}}),
            ("candidate.source.path", {"candidate": {"id": "c1", "source": {"kind": "path"}}}),
            ("candidate.source.files", {"candidate": {"id": "c1", "source": {**source, "files": []}}}),
            ("candidate.source.files.a.size", {"candidate": {"id": "c1", "source": {**source, "files": {"a": {}}}}}),
            ("tasks", {"tasks": []}),
            ("tasks", {"tasks": {"name": "fog"}}),
            ("per_sample", {"per_sample": 1}),
        ]:
            self.assert_refused({**evaluation(TASKS / "base", {"name": "fog"}), **change}, part)
        self.assert_refused([], "object")

    def assert_refused(self, document, part):
        with self.subTest(document=document):
            status, problem = self.endpoint.call("/v1/evaluations", document)
            self.assertEqual((status, problem["status"], problem["code"], problem["class"]),
                             (400, 400, "invalid_request", "configuration"))
            self.assertIn(part, problem["detail"])

    def test_what_may_be_left_out_may_be_null(self):
        document = evaluation(TASKS / "base", {"name": "fog", "sample_ids": None, "limit": None, "seed": None}, per_sample=None)
        document["candidate"]["source"]["files"] = None
        status, answer = self.endpoint.call("/v1/evaluations", document)
        self.assertEqual((status, answer["tasks"]["fog"]["n"]), (200, 240))
        self.assertNotIn("per_sample", answer["tasks"]["fog"])

    def assert_candidate_failed(self, folder, code):
        status, answer = self.evaluate(folder, {"name": "clean"})
        self.assertEqual((status, answer["status"]), (200, "failed"))
        self.assertEqual((answer["error"]["code"], answer["error"]["class"]), (code, "candidate"))

    def test_a_broken_candidate_is_its_own_fault(self):
        with tempfile.TemporaryDirectory() as folder:
            broken = pathlib.Path(folder) / "broken"
            shutil.copytree(TASKS / "base", broken)
            weights = broken / "model.safetensors"
            raw = bytearray(weights.read_bytes())
            raw[-4:] = np.float32("nan").tobytes()
            weights.write_bytes(raw)
            self.assert_candidate_failed(broken, "candidate_nonfinite")
            weights.write_bytes(b"short")
            self.assert_candidate_failed(broken, "candidate_invalid")
            weights.write_bytes(b"not safetensors")
            self.assert_candidate_failed(broken, "candidate_invalid")
            weights.unlink()
            self.assert_candidate_failed(broken, "candidate_invalid")

    def test_a_folder_that_is_not_there_yet_is_not_the_candidates_fault(self):
        document = evaluation(TASKS / "base", {"name": "clean"})
        size = (TASKS / "base" / "model.safetensors").stat().st_size
        document["candidate"]["source"]["files"] = {"model.safetensors": {"size": size}}
        self.assertEqual(self.endpoint.call("/v1/evaluations", document)[0], 200)
        document["candidate"]["source"]["files"] = {"model.safetensors": {"size": size + 1}}
        status, problem = self.endpoint.call("/v1/evaluations", document)
        self.assertEqual((status, problem["code"], problem["class"]), (503, "materialize_failed", "infrastructure"))

    def test_a_poor_endpoint_says_so(self):
        poor = Endpoint("--fault-rate", "1")
        self.addCleanup(poor.close)
        status, problem = poor.call("/v1/evaluations", evaluation(TASKS / "base", {"name": "clean"}))
        self.assertEqual((status, problem["code"], problem["attempt_counts"]), (503, "overloaded", False))


if __name__ == "__main__":
    unittest.main()
