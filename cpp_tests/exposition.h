// A strict reader of Prometheus' text format, written from its description:
// https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
#ifndef EPLB_TESTS_EXPOSITION_H
#define EPLB_TESTS_EXPOSITION_H

#include <cstdlib>
#include <map>
#include <regex>
#include <stdexcept>
#include <string>

struct exposition {
    using labels = std::map<std::string, std::string>;
    struct metric {
        std::string help, type;
        std::map<labels, double> samples;
    };
    std::map<std::string, metric> metrics;

    /// The sample with these labels.
    double at(const std::string &name, const labels &of = {}) const {
        const auto metric = metrics.find(name);
        if (metric == metrics.end() || metric->second.samples.count(of) == 0) {
            throw std::runtime_error("there is no such sample of " + name);
        }
        return metric->second.samples.at(of);
    }

    /// Throws the error and its line.
    explicit exposition(const std::string &text) {
        if (!text.empty() && text.back() != '\n') {
            throw std::runtime_error("the last line does not end");
        }
        std::string open; // The metric whose samples are being read.
        for (size_t start = 0; start < text.size();) {
            const size_t end = text.find('\n', start);
            const std::string line = text.substr(start, end - start);
            start = end + 1;
            try {
                read(line, open);
            } catch (const std::runtime_error &error) {
                throw std::runtime_error(std::string(error.what()) + ": " + line);
            }
        }
        for (const auto &[name, metric] : metrics) {
            check(!metric.samples.empty(), "no samples of " + name);
        }
    }

  private:
    static void check(bool holds, const std::string &what) {
        if (!holds) {
            throw std::runtime_error(what);
        }
    }

    void read(const std::string &line, std::string &open) {
        static const std::regex comment("# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)");
        static const std::regex sample("([a-zA-Z_:][a-zA-Z0-9_:]*)(\\{[^\n]*\\})? ([^ ]+)");
        std::smatch match;
        if (std::regex_match(line, match, comment)) {
            const std::string name = match[2], text = match[3];
            metric &of = metrics[name];
            check(of.samples.empty(), "a comment after samples of its metric");
            if (match[1] == "HELP") {
                check(of.help.empty() && of.type.empty(), "HELP comes once and first");
                of.help = text;
            } else {
                check(of.type.empty() && !of.help.empty(), "TYPE comes once, after HELP");
                check(text == "gauge" || text == "counter", "an unknown type");
                check((text == "counter") == (name.size() > 6 && name.rfind("_total") == name.size() - 6),
                      "counters, and nothing else, end in _total");
                of.type = text;
            }
            open = name;
            return;
        }
        check(std::regex_match(line, match, sample), "neither a comment nor a sample");
        const std::string name = match[1], value = match[3];
        check(name == open && !metrics[name].type.empty(), "a sample apart from its metric");
        char *end = nullptr;
        const double number = std::strtod(value.c_str(), &end);
        check(*end == '\0', "no number");
        check(metrics[name].type == "gauge" || number >= 0, "a counter below 0");
        check(metrics[name].samples.insert({read_labels(match[2]), number}).second,
              "a sample that was there");
    }

    /// `{name="value",...}`, or nothing.
    static labels read_labels(const std::string &text) {
        static const std::regex name("[{,]([a-zA-Z_][a-zA-Z0-9_]*)=\"");
        labels found;
        auto at = text.begin();
        std::smatch match;
        while (std::regex_search(at, text.end(), match, name, std::regex_constants::match_continuous)) {
            check((*at == '{') == found.empty(), "labels are separated by commas");
            std::string value;
            for (at = match[0].second; at != text.end() && *at != '"'; at++) {
                if (*at != '\\') {
                    value += *at;
                    continue;
                }
                at++;
                check(at != text.end() && (*at == '\\' || *at == '"' || *at == 'n'), "an unknown escape");
                value += *at == 'n' ? '\n' : *at;
            }
            check(at != text.end(), "a value that does not end");
            at++;
            check(found.insert({match[1], value}).second, "a label twice");
        }
        check(text.empty() || std::string(at, text.end()) == "}", "no labels");
        return found;
    }
};

#endif
