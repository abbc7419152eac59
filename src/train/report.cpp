#include "train/report.h"

#include "io/plot.h"
#include "train/monitor.h"
#include "train/run_charts.h"

namespace nibble {

using Json = nlohmann::ordered_json;

namespace {

constexpr std::string_view kRemarks =
    "Losses are nats per token on the validation text, with the recipe's own forward and with every product "
    "in bf16. "
    "Seed spread: standard deviation over runs that differ in their seed alone. % SOL: the floating-point "
    "operations "
    "that the model needs, over what the machine does in bf16 matrix products, measured in the same run.";

std::string escaped(std::string_view text) {
    std::string result;
    for (char c : text) {
        switch (c) {
            case '<':
                result += "&lt;";
                break;
            case '>':
                result += "&gt;";
                break;
            case '&':
                result += "&amp;";
                break;
            case '"':
                result += "&quot;";
                break;
            default:
                result += c;
        }
    }
    return result;
}

// The configuration of a header as readable lines, "optimizer.lr = 0.001".
std::string flat_config(const Json& config) {
    std::string text;
    for (const auto& [key, value] : config.items()) {
        if (!value.is_object()) {
            text += fmt::format("{} = {}\n", key, value.dump());
            continue;
        }
        for (const auto& [word, inner] : value.items())
            text += fmt::format("{}.{} = {}\n", key, word, inner.dump());
    }
    return text;
}

constexpr std::string_view kStyle = R"(
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #ffffff; --faint: #6b7280; --line: #d9dce1; --box: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --paper: #15171a; --faint: #9aa1ab; --line: #33373d; --box: #1e2125; }
}
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
p.remark { color: var(--faint); font-size: .875rem; max-width: 50rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; white-space: nowrap; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
figure { margin: 0; } figcaption { color: var(--faint); font-size: .875rem; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--ink); } svg [stroke="black"] { stroke: var(--ink); }
pre { background: var(--box); padding: .8rem 1rem; overflow-x: auto; font-size: .8rem; line-height: 1.4; }
summary { cursor: pointer; } .swatch { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em; }
)";

std::string html_table(const TableRows& rows) {
    std::string html = "<div class=\"scroll\"><table>\n";
    for (size_t i = 0; i < rows.size(); ++i) {
        html += "<tr>";
        for (size_t j = 0; j < rows[i].size(); ++j) {
            const std::string_view tag = i == 0 ? "th" : "td";
            const std::string swatch =
                i > 0 && j == 0 ? fmt::format("<span class=\"swatch\" style=\"background:{}\"></span>",
                                              curve_color(i - 1))
                                : "";
            html += fmt::format("<{0}>{1}{2}</{0}>", tag, swatch, escaped(rows[i][j]));
        }
        html += "</tr>\n";
    }
    return html + "</table></div>\n";
}

std::string html_details(const ReportedRun& run) {
    const Json& header = run.log.header;
    std::string html =
        fmt::format("<h2>{} <small>({})</small></h2>\n<pre>{}</pre>\n", escaped(recipe_of(run)),
                    escaped(run.where), escaped(text_at(header, "/recipe/table")));
    std::string executed;
    if (header.contains("gemms"))
        for (const Json& gemm : header.at("gemms"))
            executed += fmt::format("{:<6} requested {}, executed {}\n", gemm.value("product", ""),
                                    gemm.value("requested", ""), gemm.value("executed", ""));
    if (run.log.end.contains("health"))
        html += fmt::format("<pre>{}</pre>\n", escaped(health_text(run.log.end.at("health"))));
    html += fmt::format("<details><summary>Products, device, data</summary><pre>{}\n{}{}{}</pre></details>\n",
                        escaped(executed),
                        escaped(flat_config({{"device", header.value("device", Json::object())}})),
                        escaped(flat_config({{"machine", header.value("machine", Json::object())}})),
                        escaped(flat_config(header.value("data", Json::object()))));
    html += fmt::format("<details><summary>Configuration</summary><pre>{}\n{}</pre></details>\n",
                        escaped(text_at(header, "/command")),
                        escaped(flat_config(header.value("config", Json::object()))));
    return html;
}

}  // namespace

std::string to_html(const std::vector<ReportedRun>& runs, const SeedLosses& seeds) {
    require(!runs.empty(), "a report needs at least one run");
    std::string html =
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
        "<meta name=\"viewport\" content=\"width=device-width\">\n";
    const std::string title = text_at(runs[0].log.header, "/name");
    html += fmt::format("<title>{}: nibble report</title>\n<style>{}</style></head>\n<body>\n<h1>{}</h1>\n",
                        escaped(title), kStyle, escaped(title));
    html += fmt::format("<p class=\"remark\">{} parameters, {}, {}, {} threads</p>\n",
                        escaped(text_at(runs[0].log.header, "/model/parameters")),
                        escaped(text_at(runs[0].log.header, "/device/cpu")),
                        escaped(text_at(runs[0].log.header, "/machine/gemm")),
                        escaped(text_at(runs[0].log.header, "/machine/threads")));
    html += html_table(run_table(runs, seeds));
    html += fmt::format("<p class=\"remark\">{}</p>\n", kRemarks);
    if (const Chart chart = loss_chart(runs); !chart.curves.empty())
        html += fmt::format("<h2>Loss</h2>\n<figure>{}</figure>\n", draw_svg(chart));
    if (const Chart chart = gap_chart(runs); !chart.curves.empty())
        html += fmt::format("<h2>Gap to bf16</h2>\n<figure>{}</figure>\n", draw_svg(chart));
    for (const ReportedRun& run : runs) html += html_details(run);
    return html + "</body></html>\n";
}

std::string to_svg(const std::vector<ReportedRun>& runs) {
    const Chart chart = loss_chart(runs);
    require(!chart.curves.empty(), "there are no losses to draw in these runs");
    return draw_svg_file(chart);
}

}  // namespace nibble
